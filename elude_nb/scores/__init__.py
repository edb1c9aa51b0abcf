"""Scores of interpretability, one family a module: NumPy or torch in, pandas out."""

from elude_nb.scores.chat import ChatJudge, ChatServer
from elude_nb.scores.dictionaries import coherence, dictionary_stability
from elude_nb.scores.factors import (
    DCI,
    dci,
    encoded_factor,
    mutual_information,
    mutual_information_gap,
    planted_recovery,
)
from elude_nb.scores.fidelity import (
    chance_accuracy,
    knn_accuracy,
    neighbour_agreement,
    output_change,
    probe_accuracy,
    unexplained_variance,
)
from elude_nb.scores.health import (
    density,
    effective_rank,
    health,
    is_dead,
    l0,
    largest_correlation,
    linear_explained,
    stability,
)
from elude_nb.scores.intervals import Interval, difference_interval, mean_interval
from elude_nb.scores.intruder import (
    IntruderResult,
    IntruderTrial,
    grade,
    guess_by_embedding,
    intruder_accuracy,
    intruder_result,
    make_trials,
)
from elude_nb.scores.judges import EmbeddingJudge, Judge, judge_units, rank_scores
from elude_nb.scores.labels import (
    auroc,
    average_precision,
    best_unit_precision,
    class_selectivity,
    feature_monosemanticity,
    labels_covered,
)
from elude_nb.scores.overview import mixed_channels, score, score_means
from elude_nb.scores.pairwise import PairJudge, judge_pairs, win_rates
from elude_nb.scores.similarity import (
    best_images,
    localised_monosemanticity,
    monosemanticity,
    ms_score,
    polysemanticity,
    sibling_similarity,
    top_centres,
    top_similarity,
    transfer_similarity,
)
from elude_nb.scores.suggest import Suggestion, suggest_settings
from elude_nb.scores.swaps import match_units, swap_response
from elude_nb.scores.top_labels import label_share_over_chance, top_purity
from elude_nb.scores.verdict import Verdict, verdict

__all__ = [
    "DCI",
    "ChatJudge",
    "ChatServer",
    "EmbeddingJudge",
    "Interval",
    "IntruderResult",
    "IntruderTrial",
    "Judge",
    "PairJudge",
    "Suggestion",
    "Verdict",
    "auroc",
    "average_precision",
    "best_images",
    "best_unit_precision",
    "chance_accuracy",
    "class_selectivity",
    "coherence",
    "dci",
    "density",
    "dictionary_stability",
    "difference_interval",
    "effective_rank",
    "encoded_factor",
    "feature_monosemanticity",
    "grade",
    "guess_by_embedding",
    "health",
    "intruder_accuracy",
    "intruder_result",
    "is_dead",
    "judge_pairs",
    "judge_units",
    "knn_accuracy",
    "l0",
    "label_share_over_chance",
    "labels_covered",
    "largest_correlation",
    "linear_explained",
    "localised_monosemanticity",
    "make_trials",
    "match_units",
    "mean_interval",
    "mixed_channels",
    "monosemanticity",
    "ms_score",
    "mutual_information",
    "mutual_information_gap",
    "neighbour_agreement",
    "output_change",
    "planted_recovery",
    "polysemanticity",
    "probe_accuracy",
    "rank_scores",
    "score",
    "score_means",
    "sibling_similarity",
    "stability",
    "suggest_settings",
    "swap_response",
    "top_centres",
    "top_purity",
    "top_similarity",
    "transfer_similarity",
    "unexplained_variance",
    "verdict",
    "win_rates",
]  # fmt: skip
