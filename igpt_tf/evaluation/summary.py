"""Reports as short tables for the terminal."""

from igpt_tf.formatting import percent, table

_BASELINES = ("raw_pixels", "palette_counts", "random_network")
_NO_TEST = "There is no test part: these are held-out accuracies, the ones chosen by."


def of_linear_probe(report: dict) -> str:
    """Accuracy of each layer, then of what the model has to beat."""
    solver, best = report["solver"], report["best_layer"]["layer"]
    rows = [
        (f"layer {row['layer']}" + (" (best)" if row["layer"] == best else ""), row)
        for row in report["layers"]
    ]
    if report["concatenated"]:
        layers = report["concatenated"]["layers"]
        rows.append((f"layers {layers[0]} to {layers[-1]}", report["concatenated"]))
    for name in _BASELINES:
        row = report["baselines"][name]
        which = f", layer {row['layer']}" if len(row["layers"]) > 1 else ""
        rows.append((name.replace("_", " ") + which, row))
    with_test = report["measured_on"] == "test"
    measures = ["valid_accuracy", "test_accuracy"] if with_test else ["valid_accuracy"]
    cells = [
        [title, *(percent(row[measure]) for measure in measures), f"{row[solver]:g}"]
        for title, row in rows
    ]
    text = table(["linear probe", *["held-out", "test"][: len(measures)], solver], cells)
    return text if with_test else f"{text}\n{_NO_TEST}"


def of_low_data(report: dict) -> str:
    """Accuracy and its deviation for each number of labels."""
    part = report["measured_on"]
    rows = [
        [
            row["labels_per_class"],
            name.replace("_", " "),
            row["layer"] if name == "pretrained_network" else "",
            f"{percent(row[f'{part}_accuracy'])} +- {100 * row[f'{part}_deviation']:.1f}",
        ]
        for pair in zip(report["pretrained_network"], report["raw_pixels"], strict=True)
        for name, row in zip(("pretrained_network", "raw_pixels"), pair, strict=True)
    ]
    text = table(["labels per class", "features", "layer", f"{_name(part)} accuracy"], rows)
    return text if part == "test" else f"{text}\n{_NO_TEST}"


def of_finetune(result: dict) -> str:
    """The trials, then the accuracies of the chosen run."""
    rows = [
        [
            f"trial at {row['learning_rate']:g}",
            row["step"] or "",
            percent(row["valid_accuracy"]),
            "",
        ]
        for row in result["search"]
    ]
    accuracy = result["accuracy"]
    start = "from scratch" if result["from_scratch"] else "fine-tuned"
    measured = [percent(accuracy["valid"]), percent(accuracy.get("test"))]
    rows.append([f"{start} at {result['learning_rate']:g}", result["step"], *measured])
    text = table(["classification", "best step", "held-out", "test"], rows)
    return text if "test" in accuracy else f"{text}\n{_NO_TEST}"


def of_evaluation(report: dict) -> str:
    """One row."""
    row = [
        report["data"],
        report["split"] or "",
        f"{report['num_images']:,}",
        f"{report['nats_per_token']:.4f} +- {report['standard_error']:.4f}",
    ]
    return table(["data", "part", "images", "nats/token"], [row])


def of_palette(report: dict, path: str) -> str:
    """One row, and where the palette is."""
    header = ["palette", "colours", "used", "PSNR (dB)"]
    row = [path, report["num_colours"], report["used_colours"], f"{report['psnr']:.2f}"]
    return table(header, [row])


def title(report: dict) -> str:
    """Of the picture of surprises."""
    part = f" ({_name(report['split'])})" if report["split"] else ""
    return (
        f"{report['data']}{part}: {report['nats_per_token']:.4f} nats/token, "
        f"{report['num_images']:,} images"
    )


def _name(part: str) -> str:
    return {"valid": "held-out"}.get(part, part)
