"""Claims about planning: what does not fit is refused before it is begun."""

import pytest

from igpt_tf.errors import InputError
from igpt_tf.evaluation.memory import announcement, painting_batch
from igpt_tf.sampling import peak_bytes

# iGPT-S.
CONFIG = {"image_size": [32, 32], "num_layers": 24, "hidden_dim": 512, "num_heads": 8}
ONE = peak_bytes(CONFIG, 1)


def test_with_room_enough_sixteen_are_painted_at_a_time_or_all_there_are():
    assert painting_batch(CONFIG, None, 100, 1e12) == 16
    assert painting_batch(CONFIG, None, 5, 1e12) == 5


def test_with_less_memory_fewer_are_painted_at_a_time():
    assert painting_batch(CONFIG, None, 100, 5 * ONE) == 4
    assert painting_batch(CONFIG, None, 100, 1.3 * ONE) == 1


@pytest.mark.parametrize(("wanted", "available"), [(8, 5 * ONE), (None, 0.5 * ONE)])
def test_a_batch_that_cannot_fit_is_refused_with_both_sizes(wanted, available):
    with pytest.raises(InputError, match=r"needs .* GB .* GB are free.*Received: batch_size="):
        painting_batch(CONFIG, wanted, 100, available)


def test_the_memory_of_a_batch_is_stated():
    # 2 x 24 layers x 512 x 1,024 positions x 4 bytes are 101 MB an image, twice while growing.
    assert announcement(CONFIG, 1).endswith("at most 0.214 GB of memory")
