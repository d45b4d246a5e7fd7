"""Serve models: a PACS node that answers chest films with DICOM results."""
