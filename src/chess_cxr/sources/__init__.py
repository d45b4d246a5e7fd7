"""List films: of folders, tables, public data sets, or generated ones."""
