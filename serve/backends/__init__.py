"""One file per engine; each turns the files of a model version into a Model."""
