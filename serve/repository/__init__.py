"""The model repository: configuration, versions, derived artefacts."""
