from triton_walk import *  # noqa: F403
