"""Weights published with other papers -> model folders of ours."""
