"""Serve models: a page, REST, and a PACS node that answers chest films with DICOM results."""
