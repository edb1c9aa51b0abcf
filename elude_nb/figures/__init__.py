"""Still pictures: each function takes a result and returns a `Picture`; none runs a model."""

from elude_nb.figures.concept_map import concept_atlas
from elude_nb.figures.depth import concept_profile, contributions_by_block
from elude_nb.figures.images import activation_map, before_after, contact_sheet, unit_maps
from elude_nb.figures.quiz import quiz_result
from elude_nb.figures.routing import routing_bars, routing_sankey
from elude_nb.figures.scores import (
    factor_heatmap,
    granularity_curve,
    score_distributions,
    score_intervals,
    tradeoff,
    trial_sheet,
)
from elude_nb.figures.steering import (
    accuracy_bars,
    class_drops,
    dose_response,
    neighbour_grid,
    patch_changes,
    selectivity_curves,
    side_effects,
    similarity_bars,
)
from elude_nb.figures.theme import Picture, house_style, plotly_template, theme
from elude_nb.figures.trace import channel_steps

__all__ = [
    "Picture",
    "accuracy_bars",
    "activation_map",
    "before_after",
    "channel_steps",
    "class_drops",
    "concept_atlas",
    "concept_profile",
    "contact_sheet",
    "contributions_by_block",
    "dose_response",
    "factor_heatmap",
    "granularity_curve",
    "house_style",
    "neighbour_grid",
    "patch_changes",
    "plotly_template",
    "quiz_result",
    "routing_bars",
    "routing_sankey",
    "score_distributions",
    "score_intervals",
    "selectivity_curves",
    "side_effects",
    "similarity_bars",
    "theme",
    "tradeoff",
    "trial_sheet",
    "unit_maps",
]
