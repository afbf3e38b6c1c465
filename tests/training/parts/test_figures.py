from training.analysis import against_descriptions
from training.parts.figures import draw_activations, draw_against_descriptions, draw_against_error


def test_many_targets_get_a_panel_and_a_colour_each():
    """More panels than fit in a row, a target without any value, and more tasks than colours."""
    names = [f"a_task_with_a_rather_long_name_{i}" for i in range(9)]
    points = [
        {
            "target": name,
            "lora": f"{j}",
            "descriptions": (i * j % 7) / 7,
            "factors": j / 9,
            "performance": None if i == 3 else j,
        }
        for i, name in enumerate(names)
        for j in range(9)
    ]
    figure = draw_against_descriptions(against_descriptions(points, ["factors", "performance"]))
    panels = figure.get_axes()
    assert "A and B" in figure.get_suptitle() and "(7 targets)" in figure.get_suptitle()
    assert len(panels) == 18 and "r = " in panels[1].get_title() and "not defined" in panels[12].get_title()
    assert len({panel.get_ylim() for panel in panels[:9]}) == 1

    places = [{"task": name, "task_encoder": [i, 0.0], "last_block": [0.0, i]} for i, name in enumerate(names)]
    figure = draw_activations({"points": places, "silhouette": {"task_encoder": 0.5, "last_block": None}})
    looks = {
        (tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes()) for dots in figure.axes[0].collections
    }
    assert len(looks) == 9 and "not defined" in figure.axes[1].get_title()


def test_figure_3_has_a_line_for_each_head_and_one_for_the_oracles():
    instances = [
        {"head": head, "trained_tasks": n, "error": n / 1000, "relative_performance": 1 / n}
        for head in "LMS"
        for n in (1, 2, 4)
    ]
    figure = draw_against_error({"metric": "score", "tasks": ["a"], "r": -0.5, "instances": instances})
    labels = [line.get_label() for line in figure.axes[0].get_lines()]
    assert labels == ["the tasks' own LoRAs", "HyperLoRA L", "HyperLoRA M", "HyperLoRA S"]
    assert "r = -0.50" in figure.axes[0].get_title()
