import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from eosjax.data.labels.agreement import match_ends

STEPS = st.lists(st.integers(0, 40), max_size=12, unique=True).map(sorted)


@given(STEPS, STEPS, st.integers(0, 8))
def test_as_many_pairs_as_any_matching_has(found, true, collar):
    pairs = match_ends(found, true, collar)
    assert all(abs(found[i] - true[j]) <= collar for i, j in pairs)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    fits = np.abs(np.subtract.outer(found, true)) <= collar if found and true else np.zeros((1, 1))
    assert len(pairs) == int((maximum_bipartite_matching(csr_array(fits.astype(int)), perm_type="column") >= 0).sum())
