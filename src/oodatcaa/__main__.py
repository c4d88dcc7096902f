"""`python -m oodatcaa`."""

from oodatcaa.cli.main import main

if __name__ == "__main__":
    main()
