"""Which labels are wrong? Those whose weight should fall, says the gradient through the training they took part in.

Of 1,000 digits 30 are given a wrong label. Every example has a weight, all of them one, and the weights are an input of
the run like its key. So the gradient of the last validation loss by the weights is how much each example harmed
(positive) or helped, in all of the training: its influence. Only the 400 digits of the validation need right labels.

To compare, the same number of suspects by their own loss after the same training, for which no derivative is needed:
it finds still more of the wrong labels. What influence finds is harm, which is not the same, and leaving that out is
worth more on digits that neither ranking has seen.
"""

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from funcnn import data, layers, losses, training

WRONG, SUSPECTS, DRAWS, SEEDS = 30, 60, 5, 8

model = layers.serial(layers.dense(32), layers.tanh, layers.dense(10))
trainer = training.supervised(model, losses.softmax_cross_entropy, optax.sgd(0.2, momentum=0.9))


def with_wrong_labels(y, key):
    """The labels with 30 of them wrong, and which."""
    place_key, shift_key = jax.random.split(key)
    places = jax.random.choice(place_key, len(y), (WRONG,), replace=False)
    return (y.at[places].add(jax.random.randint(shift_key, (WRONG,), 1, 10))) % 10, places


def trained(weights, x, y, held_out, key):
    """The last loss on held-out data, and every example's own loss: means over eight short runs, side by side."""

    def one(key):
        run = training.run(trainer, (x, y, weights), key=key, epochs=50, batch_size=None, validation=held_out)
        outputs, _ = model.apply(run.state.params, run.state.model_state, x)
        return run.history["validation_loss"][-1], losses.softmax_cross_entropy(outputs, y)

    last, own = jax.vmap(one)(jax.random.split(key, SEEDS))
    return last.mean(), own.mean(axis=0)


def main():
    key = jax.random.key(0)
    digits, labels = load_digits(return_X_y=True)
    (x, y), rest = data.split((digits / 16, labels), 797 / 1797, key=key, stratify=labels)
    validation, test = data.split(rest, 397 / 797, key=key, stratify=rest[1])
    ones = jnp.ones(len(x))
    influence_of = jax.jit(jax.value_and_grad(trained, has_aux=True))
    loss_on = jax.jit(lambda *given: trained(*given)[0])

    print(f"{WRONG} wrong labels, {SUSPECTS} of {len(x)} digits under suspicion; by chance {WRONG * SUSPECTS / len(x)}")
    table = []
    for draw in range(DRAWS):
        wrong_key, run_key = jax.random.split(jax.random.fold_in(key, draw))
        given, wrong = with_wrong_labels(jnp.asarray(y), wrong_key)
        (_, own), influence = influence_of(ones, x, given, validation, run_key)
        found, left = [], [loss_on(ones, x, given, test, run_key)]
        for suspicion in (influence, own):
            suspects = jnp.argsort(-suspicion)[:SUSPECTS]
            found.append(jnp.isin(wrong, suspects).sum())
            left.append(loss_on(ones.at[suspects].set(0), x, given, test, run_key))
        print(f"draw {draw}: found by influence {found[0]}, by own loss {found[1]} of {WRONG}")
        table.append(jnp.array(left))
    every, without, usual = jnp.mean(jnp.array(table), axis=0)
    print(f"mean loss on {len(test[0])} other digits: {every:.3f}")
    print(f"without the suspects by influence: {without:.3f}, by own loss: {usual:.3f}")


if __name__ == "__main__":
    main()
