import numpy as np

from moemoe_jax.training.logging import MetricsWriter
from moemoe_jax.training.start import evaluation_at
from moemoe_jax.workdir import WorkDir


def test_an_evaluation_is_owed_until_its_metrics_are_written(tmp_path):
    workdir = WorkDir(tmp_path)
    assert evaluation_at(workdir, 4) is None
    with MetricsWriter(tmp_path) as writer:
        writer.write(4, {"val/accuracy": 0.5, "val/ece": np.nan, "val/questions": 7})
        writer.write(8, {"loss/total": 2.0})
    found = evaluation_at(workdir, 4)
    assert found.pop("accuracy") == 0.5
    assert np.isnan(found.pop("ece"))
    assert found == {}
    assert evaluation_at(workdir, 8) is None  # the step is logged, its evaluation is not
