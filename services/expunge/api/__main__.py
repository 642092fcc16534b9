"""`python -m expunge.api`: what `expunge serve-api` does, without loading the command line's libraries first."""

from expunge.api.serve import run
from expunge.settings import Settings

if __name__ == "__main__":
    run(Settings.read())
