# Seurat objects and the h5ad files that scfm reads and writes. Needs Seurat and hdf5r.
#
#   write_h5ad(object, "cells.h5ad")      raw counts and cell metadata
#   object <- read_h5ad("labelled.h5ad")  counts, obs as metadata, obsm["X_scfm"] as reduction "scfm"
#
# A Seurat count matrix (genes x cells, by columns) and an AnnData one (cells x genes, by rows) lie
# in memory in the same way: nothing is transposed.

suppressPackageStartupMessages({
  library(Matrix)
  library(Seurat)
  library(hdf5r)
})

# counts of an assay, in Seurat 5 and before
raw_counts <- function(object, assay = DefaultAssay(object)) {
  argument <- if (packageVersion("SeuratObject") >= "5.0.0") "layer" else "slot"
  counts <- do.call(GetAssayData, setNames(list(object, assay, "counts"), c("object", "assay", argument)))
  as(counts, "CsparseMatrix")
}

write_h5ad <- function(object, path, assay = DefaultAssay(object)) {
  counts <- raw_counts(object, assay)
  stopifnot("the assay has no raw counts" = length(counts@x) > 0)
  partial <- paste0(path, ".partial") # renamed once it is whole
  file <- H5File$new(partial, mode = "w")
  on.exit(if (file$is_valid) file$close_all())
  describe(file, "anndata", "0.1.0")
  x <- file$create_group("X")
  describe(x, "csr_matrix", "0.1.0")
  h5attr(x, "shape") <- rev(dim(counts))
  x[["data"]] <- counts@x
  x[["indices"]] <- counts@i
  x[["indptr"]] <- counts@p
  write_frame(file, "obs", colnames(counts), object[[]][colnames(counts), , drop = FALSE])
  write_frame(file, "var", rownames(counts), data.frame(symbol = rownames(counts)))
  file$close_all()
  stopifnot(file.rename(partial, path))
  invisible(path)
}

read_h5ad <- function(path, reduction = "scfm") {
  file <- H5File$new(path, mode = "r")
  on.exit(file$close_all())
  obs <- read_frame(file[["obs"]])
  var <- read_frame(file[["var"]])
  x <- file[["X"]]
  stopifnot("X is not stored by rows" = identical(h5attr(x, "encoding-type"), "csr_matrix"))
  counts <- new(
    "dgCMatrix",
    p = x[["indptr"]]$read(), i = x[["indices"]]$read(), x = as.numeric(x[["data"]]$read()),
    Dim = c(nrow(var), nrow(obs)), Dimnames = list(rownames(var), rownames(obs))
  )
  object <- CreateSeuratObject(counts, meta.data = obs)
  key <- paste0("obsm/X_", reduction)
  if (file$exists(key)) {
    # hdf5r hands arrays over with their dimensions reversed
    embedding <- t(file[[key]]$read())
    dimnames(embedding) <- list(rownames(obs), paste0(reduction, "_", seq_len(ncol(embedding))))
    object[[reduction]] <- CreateDimReducObject(
      embedding, key = paste0(reduction, "_"), assay = DefaultAssay(object)
    )
  }
  object
}

text <- function() H5T_STRING$new(size = Inf)$set_cset("UTF-8")

# one text, where hdf5r would write an array of one
set_text <- function(item, name, value) {
  item$create_attr(name, robj = value, dtype = text(), space = H5S$new("scalar"))
}

describe <- function(item, type, version) {
  set_text(item, "encoding-type", type)
  set_text(item, "encoding-version", version)
}

write_frame <- function(file, name, index, frame) {
  group <- file$create_group(name)
  describe(group, "dataframe", "0.2.0")
  set_text(group, "_index", "_index")
  columns <- names(frame)
  size <- length(columns)
  group$create_attr(
    "column-order", robj = columns, dtype = text(),
    space = H5S$new("simple", dims = size, maxdims = size)
  )
  write_column(group, "_index", index)
  for (column in columns) write_column(group, column, frame[[column]])
}

write_column <- function(group, name, values) {
  if (is.factor(values)) values <- as.character(values)
  if (is.logical(values)) values <- as.integer(values)
  if (is.character(values)) values[is.na(values)] <- "NA"
  group[[name]] <- values
  describe(group[[name]], if (is.character(values)) "string-array" else "array", "0.2.0")
}

read_frame <- function(group) {
  index <- group[[h5attr(group, "_index")]]$read()
  columns <- if (group$attr_exists("column-order")) h5attr(group, "column-order") else character()
  values <- lapply(setNames(columns, columns), function(name) read_column(group[[name]]))
  data.frame(values, row.names = index, check.names = FALSE)
}

read_column <- function(item) {
  if (!inherits(item, "H5Group")) return(item$read())
  type <- h5attr(item, "encoding-type")
  if (type == "categorical") {
    codes <- item[["codes"]]$read()
    codes[codes < 0] <- NA
    return(factor(item[["categories"]]$read()[codes + 1], levels = item[["categories"]]$read()))
  }
  values <- item[["values"]]$read() # nullable: where the mask is TRUE there is none
  values[as.logical(item[["mask"]]$read())] <- NA
  values
}
