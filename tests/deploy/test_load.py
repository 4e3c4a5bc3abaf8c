"""A thousand phones on twenty real SuperNodes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil
import pytest
from numpy.linalg import norm
from safetensors.numpy import load_file
from scipy import stats

from simulations.run import run_in_process

if TYPE_CHECKING:
    from tests.deploy.conftest import Deployment

NODES, CLIENTS, ROUNDS = 20, 1000, 10
MOST_KB_A_ROUND = 1024.0  # a leak of one round's 20 replies would be 1,000 kB
