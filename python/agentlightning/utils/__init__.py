"""Helpers that are useful outside the package too."""
