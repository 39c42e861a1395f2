"""Image sets by name: the registry, readers of files, downloads."""
