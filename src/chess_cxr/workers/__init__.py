"""Worker processes: a child with limits, pools, a Dask cluster."""
