"""`python -m netvlad_deploy` is the command line."""

from netvlad_deploy.cli import main

if __name__ == "__main__":
    main()
