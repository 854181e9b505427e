"""``python -m ray_mm`` is ``ray-mm``."""

from ray_mm.cli import main

if __name__ == "__main__":
    main()
