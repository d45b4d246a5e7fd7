// What flags and operating points mean, in words.
export const FLAGS = {
  inverted: "Black and white seem to be swapped in this film; the model saw it swapped back.",
  lateral: "This seems to be a lateral film; models of frontal films do not know it.",
  not_chest: "This may not be a chest film; then the numbers mean nothing.",
  low_contrast: "The film has little contrast.",
  collimated: "Part of the picture is border; the chest may be cut off.",
  burned_in: "Text may be burned into the film.",
  small: "The film has few pixels.",
};

export const POINTS = {
  youden: "where sensitivity plus specificity was greatest on validation films",
  sensitivity_90: "where 90 % of the validation films with the finding lie at or above it",
  specificity_90: "where 90 % of the validation films without the finding lie below it",
};

export function explainPoint(answer) {
  if (!answer.operating_point) return "This model has no threshold: there is no yes or no, only a number.";
  return `The mark is the threshold, ${POINTS[answer.operating_point] ?? answer.operating_point}. ` +
    "“Yes” means that the number reaches it, not that the patient has the finding.";
}

export function explainNumbers(answer) {
  if (answer.calibrated) return "Probabilities are calibrated on validation films.";
  return answer.findings.some((finding) => finding.calibrated)
    ? "Numbers with * are not calibrated: they rank films, but are no probabilities."
    : "These numbers are not calibrated: they rank films, but are no probabilities.";
}
