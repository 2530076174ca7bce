"""EfficientNet-Lite against numbers of the reference package, and against the package itself where it is installed."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from annotary.models._efficientnet_lite import (  # noqa: E402
    EfficientNetLite,
    EfficientNetLiteConfig,
    rename_reference,
    same_padding,
)

SMALL = EfficientNetLiteConfig(width=1.0, depth=1.0, image_size=65, classes=10)

# Output of efficientnet-lite-pytorch 0.1.0 ("efficientnet-lite0", 65 px, 10 classes) with the numbers of `fill`.
GOLDEN = [
    [-2.3263986, 3.3586621, 2.5484989, 4.4929758, 1.4363039],
    [-1.1091535, 0.0198980, -2.3886178, -0.3306862, 4.1655445],
    [-2.9195201, 2.0316374, 1.4986794, 4.5748587, 1.7952276],
    [-0.9230743, 0.0204066, -1.7676237, -0.6385013, 4.7223701],
]


def numbers(count: int, start: float) -> torch.Tensor:
    """Numbers in -1..1 without pattern, the same everywhere."""
    index = torch.arange(count, dtype=torch.float64)
    return torch.frac(torch.sin(index * 12.9898 + start).abs() * 43758.5453) * 2 - 1


def fill(state: dict[str, torch.Tensor]) -> None:
    """Fill a state dict in the order of its names."""
    for place, (name, value) in enumerate(sorted(state.items())):
        if value.dtype != torch.float32:
            continue
        filling = numbers(value.numel(), place * 78.233)
        if "running_var" in name:
            filling = filling.abs() + 0.5
        elif value.ndim == 1:
            filling = 1 + 0.2 * filling if "weight" in name else 0.1 * filling
        else:
            filling = filling * (6 / value[0].numel()) ** 0.5
        value.copy_(filling.reshape(value.shape).float())


def reference_names(config: EfficientNetLiteConfig) -> dict[str, torch.Tensor]:
    """A state dict with the reference's names and the network's shapes."""
    ours = EfficientNetLite(config).state_dict()
    swaps = {"stem.conv": "_conv_stem", "stem.norm": "_bn0", "head.conv": "_conv_head"}
    swaps |= {"head.norm": "_bn1", "classifier": "_fc"}
    inner = {"expand.conv": "_expand_conv", "expand.norm": "_bn0", "depthwise.norm": "_bn1"}
    inner |= {"depthwise.conv": "_depthwise_conv"}
    inner |= {"project.conv": "_project_conv", "project.norm": "_bn2"}
    state = {}
    for name, value in ours.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            renamed = f"_blocks.{parts[1]}.{inner['.'.join(parts[2:4])]}.{parts[4]}"
        elif parts[0] == "classifier":
            renamed = f"_fc.{parts[1]}"
        else:
            renamed = f"{swaps['.'.join(parts[:2])]}.{parts[2]}"
        state[renamed] = value
    return state


def example_image(side: int) -> torch.Tensor:
    return numbers(2 * 3 * side * side, 0.0).reshape(2, 3, side, side).float()


def golden_network() -> EfficientNetLite:
    state = reference_names(SMALL)
    fill(state)
    return EfficientNetLite(SMALL).load_reference(state).eval()


def test_golden_numbers_of_the_reference() -> None:
    with torch.inference_mode():
        found = golden_network()(example_image(65))
    torch.testing.assert_close(found, torch.tensor(GOLDEN).reshape(2, 10), atol=2e-5, rtol=1e-5)


def test_folding_keeps_the_output() -> None:
    network = golden_network()
    with torch.inference_mode():
        before = network.stages(example_image(65))
        after = network.fold().stages(example_image(65))
        again = network.fold().stages(example_image(65))
    for first, second, third in zip(before, after, again, strict=True):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)
        assert torch.equal(second, third)


def test_shape_of_lite2() -> None:
    network = EfficientNetLite().eval()
    assert sum(p.numel() for p in network.parameters()) == 6_092_072
    with torch.inference_mode():
        stages = network.stages(torch.zeros(1, 3, 260, 260))
    assert [tuple(stage.shape[1:]) for stage in stages] == [
        (16, 130, 130),
        (24, 65, 65),
        (48, 33, 33),
        (88, 17, 17),
        (120, 17, 17),
        (208, 9, 9),
        (352, 9, 9),
        (1280, 9, 9),
    ]


def test_a_missing_or_unknown_key_is_an_error() -> None:
    state = reference_names(SMALL)
    del state["_fc.bias"]
    with pytest.raises(RuntimeError, match=r"classifier\.bias"):
        EfficientNetLite(SMALL).load_reference(state)
    with pytest.raises(KeyError):
        rename_reference({"_blocks.0._se_reduce.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (260, 3, 2, (0, 1)),
        (65, 3, 2, (1, 1)),
        (65, 5, 2, (2, 2)),
        (130, 5, 2, (1, 2)),
        (9, 3, 1, (1, 1)),
        (9, 1, 1, (0, 0)),
    ],
)
def test_padding_is_tensorflows(
    size: int, kernel: int, stride: int, expected: tuple[int, int]
) -> None:
    assert same_padding(size, kernel, stride) == expected


def test_parity_with_the_reference_package() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    reference = package.EfficientNet.from_name("efficientnet-lite2", image_size=97).eval()
    network = EfficientNetLite().load_reference(reference.state_dict()).eval()
    image = torch.randn(2, 3, 97, 97)
    with torch.inference_mode():
        torch.testing.assert_close(network(image), reference(image), atol=1e-5, rtol=0)
