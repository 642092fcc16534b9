"""The command line. `app.main` runs one command; each module here adds a few."""
