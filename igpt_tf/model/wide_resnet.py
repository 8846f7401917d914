"""The Wide ResNet of the supervised baseline. Keras only, so it runs on every Keras backend."""

import gin
import keras
from keras import layers, ops

from igpt_tf.errors import InputError


@gin.configurable
def wide_resnet(
    *,
    image_size: tuple[int, int],
    num_classes: int,
    depth: int = 16,
    width: int = 4,
    dropout: float = 0.0,
    weight_decay: float = 5e-4,
) -> keras.Model:
    """A Wide ResNet, WRN-depth-width, on images uint8[B,H,W,3]; returns logits float32[B,C].

    Args:
        image_size: (H, W).
        num_classes: C.
        depth: Number of convolutions, 6 n + 4: three groups of n blocks of two.
        width: Factor of the numbers of channels, 16, 32 and 64.
        dropout: Dropout rate between the two convolutions of a block.
        weight_decay: L2 penalty of the kernels.

    Raises:
        InputError: `depth` is not 6 n + 4, or `width` is not positive.

    Source: Zagoruyko and Komodakis 2016, "Wide Residual Networks", table 1 and section 3.
    """
    if depth < 10 or (depth - 4) % 6 or width < 1:
        raise InputError(
            "the depth of a Wide ResNet must be 10, 16, 22, 28, ... and its width 1 or more. "
            f"Received: {depth=}, {width=}"
        )
    penalty = keras.regularizers.L2(weight_decay)

    def convolution(x, channels, kernel_size=3, strides=1):
        return layers.Conv2D(
            channels,
            kernel_size,
            strides,
            padding="same",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=penalty,
        )(x)

    def normalised(x):
        return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))

    inputs = keras.Input((*image_size, 3), dtype="uint8")
    x = convolution(ops.cast(inputs, "float32") / 127.5 - 1, 16)
    for group, channels in enumerate((16 * width, 32 * width, 64 * width)):
        for block in range((depth - 4) // 6):
            strides = 2 if group > 0 and block == 0 else 1
            activated = normalised(x)
            if block == 0:  # the number of channels changes
                x = convolution(activated, channels, 1, strides)
            h = normalised(convolution(activated, channels, 3, strides))
            h = layers.Dropout(dropout)(h) if dropout else h
            x = layers.add([x, convolution(h, channels)])
    x = layers.GlobalAveragePooling2D()(normalised(x))
    return keras.Model(inputs, layers.Dense(num_classes, kernel_regularizer=penalty)(x))
