/* scalelab.plan in the browser: from a law and a budget to a model, its data and its bill, and back.

   The formulas are those of src/scalelab/plan/ and of ChinchillaLaw in src/scalelab/laws/chinchilla.py, where
   they are derived; fields keep the package's names and units. tests/site/test_plan_calculator.py holds both
   equal. Nothing here touches the page: plan-calculator.js does. */
const scalelabPlan = (() => {
  "use strict";
  const TRAINING_FLOPS = 6; // per parameter and token, forward and backward
  const INFERENCE_FLOPS = 2; // forward alone

  /* A value that cannot be used. `field` names it as the package does, the message says the way out. */
  class PlanError extends Error {
    constructor(field, message) {
      super(message);
      this.field = field;
    }
  }

  const above0 = (field, value) => {
    if (!(Number.isFinite(value) && value > 0)) {
      throw new PlanError(field, `must be a finite number above 0, got ${value}`);
    }
    return value;
  };
  const atLeast = (least, field, value) => {
    if (!(Number.isFinite(value) && value >= least)) {
      throw new PlanError(field, `must be a finite number of at least ${least}, got ${value}`);
    }
    return value;
  };
  const inReach = (field, value, logResult, unit) => {
    const result = Math.exp(logResult);
    if (Number.isFinite(result) && result > 0) return result;
    throw new PlanError(field, `${value} would take e^${logResult.toFixed(0)} ${unit}: out of reach`);
  };

  // The law: L(N, D) = E + A/N^alpha + B/D^beta, nats per token ---------------------------------------------

  /* The five parameters, checked; a and b are the exponents of the best N and D over compute. */
  const makeLaw = ({ E, A, B, alpha, beta }) => {
    atLeast(0, "E", E);
    Object.entries({ A, B, alpha, beta }).forEach(([name, value]) => above0(name, value));
    return Object.freeze({ E, A, B, alpha, beta, a: beta / (alpha + beta), b: alpha / (alpha + beta) });
  };

  const lossAt = (law, n_params, n_tokens) =>
    law.E
    + law.A * above0("n_params", n_params) ** -law.alpha
    + law.B * above0("n_tokens", n_tokens) ** -law.beta;

  /* The N and D of least loss on C = 6 N D: N* = G (C/6)^a and D* = (C/6)^b / G. */
  const optimal = (law, flops) => {
    const product = Math.log(above0("flops", flops) / TRAINING_FLOPS);
    const ratio = Math.log(law.alpha) + Math.log(law.A) - Math.log(law.beta) - Math.log(law.B);
    const logG = ratio / (law.alpha + law.beta);
    const n_params = Math.exp(logG + law.a * product);
    const n_tokens = Math.exp(law.b * product - logG);
    if (![n_params, n_tokens].every((value) => Number.isFinite(value) && value > 0)) {
      throw new PlanError("flops", `the law gives no number at ${flops} FLOPs: ask for a budget nearer to the runs`);
    }
    return { n_params, n_tokens, flops, loss: lossAt(law, n_params, n_tokens) };
  };

  /* L minus the floor E, which no model reaches. */
  const gapOf = (law, loss) => {
    above0("loss", loss);
    if (loss <= law.E) {
      throw new PlanError(
        "loss", `no compute reaches a loss of ${loss}: the law's floor is E = ${law.E} nats per token; ask for a higher one`);
    }
    return loss - law.E;
  };

  /* The fewest training FLOPs that reach a loss: at the optimum the two terms share L - E as beta to alpha. */
  const flopsFor = (law, loss) => {
    const gap = Math.log(gapOf(law, loss));
    const logN = (Math.log(law.A) - gap - Math.log(law.a)) / law.alpha;
    const logD = (Math.log(law.B) - gap - Math.log(law.b)) / law.beta;
    return inReach("loss", loss, Math.log(TRAINING_FLOPS) + logN + logD, "FLOPs");
  };

  /* Tokens that bring a model of this size to this loss: D = (B / (L - E - A/N^alpha))^(1/beta). */
  const tokensFor = (law, n_params, loss) => {
    gapOf(law, loss);
    const floor = law.E + law.A * above0("n_params", n_params) ** -law.alpha;
    if (loss <= floor) {
      throw new PlanError(
        "n_params", `no tokens bring ${n_params} parameters to a loss of ${loss}: they end at E + A / N^alpha =`
        + ` ${floor.toPrecision(6)}; take a larger model or ask for a higher loss`);
    }
    return inReach("n_params", n_params, (Math.log(law.B) - Math.log(loss - floor)) / law.beta, "tokens");
  };

  // The bill ------------------------------------------------------------------------------------------------

  /* Everything between FLOPs and money, energy and carbon; the package gets the first and the power from its
     table of hardware. */
  const assume = ({ peak_flops_per_s, mfu, price_per_gpu_hour, power_watts, pue, grid_kg_per_kwh }) => {
    above0("peak_flops_per_s", peak_flops_per_s);
    if (!(mfu > 0 && mfu <= 1)) {
      throw new PlanError("mfu", `is a share of the peak, above 0 and at most 1, got ${mfu}: write 0.4 for 40 %`);
    }
    atLeast(0, "price_per_gpu_hour", price_per_gpu_hour);
    above0("power_watts", power_watts);
    atLeast(1, "pue", pue);
    atLeast(0, "grid_kg_per_kwh", grid_kg_per_kwh);
    return Object.freeze({
      peak_flops_per_s, mfu, price_per_gpu_hour, power_watts, pue, grid_kg_per_kwh,
      flops_per_gpu_hour: peak_flops_per_s * mfu * 3600,
      kwh_per_gpu_hour: power_watts * pue / 1000,
    });
  };

  /* What so many FLOPs take; days is null where n_gpus is. */
  const bill = (flops, assumed, n_gpus = null) => {
    if (n_gpus !== null && !(Number.isSafeInteger(n_gpus) && n_gpus >= 1)) {
      throw new PlanError("n_gpus", `must be a whole number of at least 1, got ${n_gpus}`);
    }
    const gpu_hours = above0("flops", flops) / assumed.flops_per_gpu_hour;
    const energy_kwh = gpu_hours * assumed.kwh_per_gpu_hour;
    return {
      gpu_hours,
      money: gpu_hours * assumed.price_per_gpu_hour,
      energy_kwh,
      co2_kg: energy_kwh * assumed.grid_kg_per_kwh,
      n_gpus,
      days: n_gpus === null ? null : gpu_hours / n_gpus / 24,
    };
  };

  const flopsForGpuHours = (gpu_hours, assumed) => above0("gpu_hours", gpu_hours) * assumed.flops_per_gpu_hour;

  const flopsForMoney = (money, assumed) => {
    above0("money", money);
    if (assumed.price_per_gpu_hour === 0) {
      throw new PlanError("price_per_gpu_hour", "is 0: no amount of money bounds the FLOPs; plan by GPU-hours");
    }
    return money / assumed.price_per_gpu_hour * assumed.flops_per_gpu_hour;
  };

  // Plans: a model, its data, its loss and its bill ---------------------------------------------------------

  const withBill = (model, assumed, n_gpus) => ({
    ...model,
    tokens_per_param: model.n_tokens / model.n_params,
    ...bill(model.flops, assumed, n_gpus),
  });

  const planBudget = (law, flops, assumed, n_gpus = null) => withBill(optimal(law, flops), assumed, n_gpus);

  const planGpuHours = (law, gpu_hours, assumed, n_gpus = null) =>
    planBudget(law, flopsForGpuHours(gpu_hours, assumed), assumed, n_gpus);

  const planMoney = (law, money, assumed, n_gpus = null) =>
    planBudget(law, flopsForMoney(money, assumed), assumed, n_gpus);

  const planLoss = (law, loss, assumed, n_gpus = null) => planBudget(law, flopsFor(law, loss), assumed, n_gpus);

  /* Back: what a model of this size on so many tokens reaches and takes. `over_least` is its FLOPs over the
     fewest that reach its loss: 1 is compute-optimal. */
  const planModel = (law, n_params, n_tokens, assumed, n_gpus = null) => {
    const loss = lossAt(law, n_params, n_tokens);
    const flops = TRAINING_FLOPS * n_params * n_tokens;
    const model = withBill({ n_params, n_tokens, flops, loss }, assumed, n_gpus);
    return { ...model, over_least: flops / flopsFor(law, loss) };
  };

  /* The tokens that so many FLOPs pass through a model of this size. */
  const tokensOfBudget = (flops, n_params) => flops / (TRAINING_FLOPS * above0("n_params", n_params));

  // A model that is served ----------------------------------------------------------------------------------

  /* The N and D of this loss that take the fewest FLOPs in training (6 N D) and serving (2 N T) together.
     With s the share of L - E that the parameter term takes, the cost has its minimum where

         1 - alpha/beta s/(1 - s) + 2 T / (6 D(s)) = 0,

     whose left side falls as s grows from Chinchilla's share, beta/(alpha+beta), to 1: so bisection finds it. */
  const planServing = (law, loss, served_tokens) => {
    const logGap = Math.log(gapOf(law, loss));
    const served = INFERENCE_FLOPS * atLeast(0, "served_tokens", served_tokens);
    const logD = (share) => (Math.log(law.B) - logGap - Math.log1p(-share)) / law.beta;
    const slope = (share) => {
      const ease = Math.log(served) - Math.log(TRAINING_FLOPS) - logD(share); // -Infinity where nothing is served
      return 1 - law.alpha / law.beta * share / (1 - share) + Math.exp(Math.min(ease, 700));
    };
    let low = law.a, high = 1 - 1e-15;
    if (slope(high) > 0) {
      throw new PlanError("served_tokens", `${served_tokens} are more than any model of this loss is planned for`);
    }
    while (served) {
      const middle = (low + high) / 2;
      if (middle === low || middle === high) break;
      if (slope(middle) > 0) low = middle; else high = middle;
    }
    const logN = (Math.log(law.A) - logGap - Math.log(low)) / law.alpha;
    return {
      n_params: inReach("loss", loss, logN, "parameters"),
      n_tokens: inReach("loss", loss, logD(low), "tokens"),
      loss,
    };
  };

  const servingFlops = (n_params, served_tokens) => INFERENCE_FLOPS * n_params * served_tokens;

  return {
    PlanError, makeLaw, lossAt, optimal, flopsFor, tokensFor, assume, bill, flopsForGpuHours, flopsForMoney,
    planBudget, planGpuHours, planMoney, planLoss, planModel, tokensOfBudget, planServing, servingFlops,
  };
})();
