"""Predicted binding that does not fit an AnnData -> a zarr folder, and views of it.

in   logits by group of cells and chunk of regions
out  OUT/logits (group, region, TF) float16, OUT/start, end, chrom; OUT/scfm.json (names, settings)

The folder appears whole or not at all.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped
from scipy.special import expit

from scfm.data.write import atomic_folder
from scfm.errors import ConfigError, MissingFileError, UnreadableFileError
from scfm.tasks.tf_calibration import BindingCalibration
from scfm.tasks.tf_names import find_tfs
from scfm.tools.zarr_output import CHUNK_NUMBERS, MARKER

if TYPE_CHECKING:
    from anndata import AnnData

KIND = "tf_binding"
NO_GROUP = "all"  # the one group of a model that reads sequence alone
Part = tuple[int, Int[np.ndarray, " region"], Float[np.ndarray, "region tf"]]


def write_binding(
    out: str | Path,
    parts: Iterable[Part],
    *,
    groups: tuple[str, ...],
    tasks: tuple[str, ...],
    chrom: Shaped[np.ndarray, " region"],
    start: Int[np.ndarray, " region"],
    end: Int[np.ndarray, " region"],
    settings: dict[str, Any],
) -> None:
    """Write parts (group, regions in a row, logits) as they come.

    Raises OutputError: ``out`` holds something else, no space, no permission.
    """
    import zarr

    shape = (len(groups), len(chrom), len(tasks))
    with atomic_folder(out, marker=MARKER) as folder:
        store = zarr.open_group(folder, mode="w", zarr_format=3)
        n_regions = max(1, min(shape[1], CHUNK_NUMBERS // shape[2]))
        logits = store.create_array(
            "logits", shape=shape, chunks=(1, n_regions, shape[2]), dtype=np.float16
        )
        names, codes = np.unique(np.asarray(chrom).astype(str), return_inverse=True)
        for key, values in (("start", start), ("end", end), ("chrom", codes)):
            store.create_array(key, data=np.asarray(values, dtype=np.int64))
        for group, region, values in parts:
            # float16 ends at 65,504: no logit of a sound model comes near
            logits[group, region[0] : region[-1] + 1] = values.astype(np.float16)
        found = {
            **settings,
            "kind": KIND,
            "groups": list(groups),
            "tfs": list(tasks),
            "chroms": names.tolist(),
        }
        (folder / MARKER).write_text(json.dumps(found) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class BindingStore:
    """What ``scfm tfbind predict`` wrote.

    Attributes
    ----------
    groups, tfs
        First and last axis of the logits.
    regions
        chrom, start, end of the middle one, by "chrom:start-end".
    settings
        What made it: model, files, calibration.
    """

    path: Path
    groups: tuple[str, ...]
    tfs: tuple[str, ...]
    regions: pd.DataFrame
    settings: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "BindingStore":
        """Raises MissingFileError, UnreadableFileError."""
        import zarr

        path = Path(path)
        if not path.exists():
            raise MissingFileError(f"There is no {path}. Make it: scfm tfbind predict --out {path}")
        try:
            found = json.loads((path / MARKER).read_text(encoding="utf-8"))
            if found.get("kind") != KIND:
                raise ValueError(f"it holds {found.get('kind', 'something else')!r}")
            store: Any = zarr.open_group(path, mode="r")
            chrom = np.array(found.pop("chroms"))[store["chrom"][:]]
            start, end = store["start"][:], store["end"][:]
        except (OSError, ValueError, KeyError) as error:
            raise UnreadableFileError(
                f"{path} is no store of predicted binding ({error}). Make one: scfm tfbind predict."
            ) from error
        names = [f"{c}:{s}-{e}" for c, s, e in zip(chrom, start, end, strict=True)]
        regions = pd.DataFrame({"chrom": chrom, "start": start, "end": end}, pd.Index(names))
        groups, tfs = tuple(found.pop("groups")), tuple(found.pop("tfs"))
        return cls(path, groups, tfs, regions, found)

    @property
    def calibration(self) -> BindingCalibration:
        """The model's own at the time; without one, logits as they are."""
        kept = self.settings.get("calibration")
        if kept is None:
            return BindingCalibration.none(self.tfs)
        return BindingCalibration(
            tasks=self.tfs, scale=tuple(kept["scale"]), offset=tuple(kept["offset"])
        )

    def logits(self, group: str) -> Float[np.ndarray, "region tf"]:
        """Of one group of cells, float32. Raises ConfigError for one that is not there."""
        import zarr

        if group not in self.groups:
            raise ConfigError(
                f"{self.path} has no group {group!r}; there are {', '.join(self.groups[:10])}."
            )
        array: Any = zarr.open_group(self.path, mode="r")["logits"]
        return np.asarray(array[self.groups.index(group)], dtype=np.float32)

    def to_anndata(self, tf: str) -> "AnnData":
        """Groups x regions for one TF: logits in X, probabilities in layers["probability"].

        Raises ConfigError for a TF that is not there, with the nearest names, and for a TF that
        stands for several cell types.
        """
        import anndata as ad
        import zarr

        found = find_tfs([tf], self.tfs)
        if len(found) > 1:
            names = ", ".join(self.tfs[i] for i in found)
            raise ConfigError(f"{tf!r} is predicted in several cell types: {names}. Name one.")
        at = int(found[0])
        array: Any = zarr.open_group(self.path, mode="r")["logits"]
        logits = np.asarray(array[:, :, at], dtype=np.float32)
        calibration = self.calibration
        calibrated = logits * calibration.scale[at] + calibration.offset[at]
        obs = pd.DataFrame(index=pd.Index(self.groups, dtype=object))
        table = ad.AnnData(logits, obs=obs, var=self.regions.copy())
        table.layers["probability"] = expit(calibrated).astype(np.float32)
        table.uns["tf_binding_store"], table.uns["tf"] = str(self.path), self.tfs[at]
        return table

    def probabilities_into(self, adata: "AnnData") -> None:
        """``varm["tf_prob_<group>"]`` (peak, TF) and uns["tf_binding_store"], uns["tf_names"].

        Raises ConfigError where the AnnData's peaks are not the store's.
        """
        if adata.n_vars != len(self.regions):
            raise ConfigError(
                f"The AnnData has {adata.n_vars:,} peaks and {self.path} {len(self.regions):,}. "
                "Predict on these peaks: scfm tfbind predict."
            )
        for group in self.groups:
            calibrated = self.calibration.apply(self.logits(group))
            adata.varm[f"tf_prob_{group.replace('/', '_')}"] = expit(calibrated)
        adata.uns["tf_binding_store"] = str(self.path)
        adata.uns["tf_names"] = list(self.tfs)
