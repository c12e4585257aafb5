"""The products of one vector with many, outside of the GIL."""

from typing import Any

import numpy as np
import simsimd
from numpy.typing import NDArray


def fill_products(products: NDArray[np.float32], query: NDArray[Any], vectors: NDArray[Any]) -> None:
    """Fill one row with the products of a query (one row) and vectors of the same type.

    The library is not told to write there itself: with `out=` version 6.5 gives up a reference to None that it does not own, and after
    some ten thousand calls the process ends.
    """
    products[...] = np.asarray(simsimd.cdist(query, vectors, "dot", out_dtype="f32"))
