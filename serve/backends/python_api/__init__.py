"""What a Python model imports: on its process's path, and nobody else's."""
