"""Write derived films as DICOM or PNG, in the format of their source."""
