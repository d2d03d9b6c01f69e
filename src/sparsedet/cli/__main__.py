"""``python -m sparsedet.cli`` does what ``sparsedet`` does."""

from sparsedet.cli.main import main

if __name__ == "__main__":
    main()
