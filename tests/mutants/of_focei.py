"""Errors in FOCEI, its gradient, its standard errors and its conditional modes."""

from __future__ import annotations

from mutants.mutate import Mutant

EVALUATION = "inference.conditional:FOCEIObjective.evaluate"
SCORES = "inference.conditional:_cotangents"

MUTANTS = (
    # -- FOCEI -----------------------------------------------------------------------------------------------------
    Mutant(
        "FOCEI drops the log-determinant",
        EVALUATION,
        " + root.diagonal(dim1=-2, dim2=-1).log().sum(-1)",
        "",
        ("focei_value_and_modes", "wang_table"),
    ),
    Mutant(
        "FOCEI drops the Jacobian of log-normal data",
        EVALUATION,
        " - problem.log_jacobian",
        "",
        ("focei_value_and_modes", "likelihood_of_every_history"),
    ),
    Mutant(
        "FOCEI takes stale modes, those of the model's present values",
        EVALUATION,
        "find_modes(density, eta, near=ask.near, tolerance=ask.tolerance)",
        "find_modes(density, find_modes(self.density(problem, problem.values(problem.start[None])),"
        " torch.zeros_like(eta[:1])).x.expand_as(eta), max_iterations=1)",
        ("focei_starts_anywhere", "focei_scores"),
    ),
    Mutant(
        "FOCEI without the interaction term",
        "inference.ebe:Terms.__init__",
        "self.inverse + 0.5 * self.relative**2",
        "self.inverse",
        ("wang_table", "phenobarbital_at_nonmems_estimates"),
    ),
    Mutant(
        "FOCEI by the exact Hessian (Laplace)",
        EVALUATION,
        "cholesky_ex(at.information)",
        "cholesky_ex(at.hessian)",
        ("wang_table", "phenobarbital_at_nonmems_estimates"),
    ),
    Mutant(
        "modes of the data term x 0.98",
        "inference.ebe:Terms.phi",
        "0.5 * (",
        "0.49 * (",
        ("focei_value_and_modes",),
    ),
    Mutant(
        "the score ignores that modes move",
        SCORES,
        "u = torch.cholesky_solve(pull, hessian_root)",
        "u = 0 * torch.cholesky_solve(pull, hessian_root)",
        ("focei_scores_by_differences",),
    ),
    Mutant(
        "the score lacks the part of R'",
        SCORES,
        "weight_s * explained - across * first_s",
        "-across * first_s",
        ("focei_scores_by_differences",),
    ),
    Mutant(
        "the score forgets that eta = L z moves with Omega",
        "inference.conditional:FOCEIObjective.scores",
        "torch.matmul(values.factor, at.z",
        "torch.matmul(values.factor.detach(), at.z",
        ("focei_scores", "focei_starts_anywhere", "focei_scores_by_differences"),
    ),
    Mutant(
        "all subjects stop when the first has converged",
        "maths.newton:minimise",
        "not bool(stopped.all())",
        "not bool(stopped.any())",
        ("patients_do_not_see_each_other", "phenobarbital_at_nonmems_estimates"),
    ),
    # -- its relatives ---------------------------------------------------------------------------------------------
    Mutant(
        "FOCE takes the residual variance at the mode",
        "inference.conditional:FOCEObjective.density",
        "held=self.held(problem, values)",
        "",
        ("wang_table", "foce_scores_by_differences"),
    ),
    Mutant(
        "FOCE holds the residual variance while the parameters move",
        "inference.conditional:FOCEObjective.residual",
        "at_zero(problem, values)",
        "at_zero(problem, values).detach()",
        ("foce_scores_by_differences",),
    ),
    Mutant(
        "FO adds the residual variance twice",
        "inference.firstorder:_normal",
        "variance.log().sum(-1)",
        "(2 * variance).log().sum(-1)",
        ("wang_table",),
    ),
    Mutant(
        "FO holds the covariance of the observations while the parameters move",
        "inference.firstorder:_normal",
        "jac = prediction.jac.movedim(0, -2)",
        "jac = prediction.jac.movedim(0, -2).detach()",
        ("fo_scores_by_differences",),
    ),
    Mutant(
        "the score of Laplace lacks the third derivatives",
        "inference.carried:carried",
        "by_mode + more - direct * gradient.detach()",
        "by_mode",
        ("laplace_scores_by_differences",),
    ),
    Mutant(
        "the score of quadrature forgets that the scale of the grid moves",
        "inference.nodes:QuadratureObjective.evaluate",
        "-2 * part.by_scale",
        "0 * part.by_scale",
        ("quadrature_scores_by_differences",),
    ),
    Mutant(
        "quadrature around a stale centre",
        "inference.nodes:QuadratureObjective.evaluate",
        "find_modes(density, eta, near=ask.near, tolerance=ask.tolerance)",
        "find_modes(density, 0 * eta, max_iterations=1)",
        ("wang_table", "quadrature_scores_by_differences"),
    ),
    Mutant(
        "quadrature drops the determinant of its scale",
        "inference.nodes:QuadratureObjective.evaluate",
        "objective = log_det - 2 * total",
        "objective = -2 * total",
        ("wang_table",),
    ),
    # -- standard errors -------------------------------------------------------------------------------------------
    Mutant(
        "the scores' outer product is not that of log L",
        "inference.uncertainty:information",
        "0.25 * scores.T @ scores",
        "scores.T @ scores",
        ("focei_result", "standard_errors_by_the_delta_method"),
    ),
    Mutant(
        "the sandwich is only its bread",
        "inference.uncertainty:covariance_of",
        "inverse @ s @ inverse",
        "inverse",
        ("standard_errors_by_the_delta_method", "phenobarbital_at_nonmems_estimates"),
    ),
    Mutant(
        "standard errors stay on the free scale",
        "inference.uncertainty:uncertainty",
        "slope @ known @ slope.T",
        "known",
        ("standard_errors_by_the_delta_method", "phenobarbital_at_nonmems_estimates"),
    ),
    # -- second modes ----------------------------------------------------------------------------------------------
    Mutant(
        "every second start counts as a second mode",
        "inference.ebe:modes",
        "~((rival - value).abs() <= margin)",
        "~((rival - value).abs() < 0)",
        ("modes_from_second_starts",),
    ),
)
