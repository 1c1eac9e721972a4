"""Pictures and pages about the project."""
