"""One loss and one gradient however a batch is cut or spread, of every objective there is; on two processes, see test_processes."""
import pytest
import torch
from objectives import CASES, every_objective


def test_every_objective_has_a_case():
    assert {type(c.objective) for c in CASES.values()} == every_objective()


@pytest.mark.parametrize('case', CASES.values(), ids=CASES)
def test_a_batch_in_parts_is_the_batch(case):
    "The same losses and weights after two steps; or it is refused, in words."
    (losses, weights), start = case.step(1), torch.cat([p.detach().flatten().double() for m in case.models().values() for p in m.parameters()])
    assert (weights - start).norm() > 1e-6
    for parts in (2, 4):
        said = case.step(parts)
        if words := case.refusal(parts, 1): assert words in said
        else:
            assert said[0] == pytest.approx(losses, rel=0, abs=1e-10)
            torch.testing.assert_close(said[1], weights, rtol=0, atol=1e-10)
