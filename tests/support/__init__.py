"""What several suites share: where the prerequisites lie, and how processes are run and counted."""
