"""Claims about the files that the client program makes of a server's answers."""

import numpy as np

from igpt_tf.serving import asking


class _Painter:
    """Answers as a client does, without a server."""

    def sample(self, num_images, **choice):
        return {
            "images": np.zeros((num_images, 4, 6, 3), "uint8"),
            "tokens": np.zeros((num_images, 24), "int32"),
        }


def test_a_picture_is_named_by_the_seed_that_paints_it_where_seeds_wrap_around(tmp_path):
    asking.sample(_Painter(), str(tmp_path), num_images=2, seed=2**31 - 1)
    names = {path.name for path in tmp_path.glob("sample_*.png")}
    assert names == {"sample_0000_seed_2147483647.png", "sample_0001_seed_-2147483648.png"}
