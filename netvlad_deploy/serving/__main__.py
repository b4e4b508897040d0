"""`python -m netvlad_deploy.serving`: start the `tritonserver` that the package nvidia-pytriton brings."""

import sys

from netvlad_deploy.errors import NetVLADDeployError
from netvlad_deploy.serving.pytriton import start

if __name__ == "__main__":
    try:
        start(sys.argv[1:])
    except NetVLADDeployError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(error.exit_code) from error
