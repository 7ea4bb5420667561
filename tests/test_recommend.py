"""Evaluation and recommendations end to end against brute force, with the user's own ids."""

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hydra import compose, initialize_config_dir

import gnnrec
from gnnrec import models, recommend
from gnnrec.config.recipes import CONF, composed
from gnnrec.data import synthetic
from gnnrec.errors import ConfigError, DataError
from gnnrec.training import evaluate as evaluate_module
from gnnrec.training.evaluate import Evaluator
from gnnrec.training.run import graph_of
from gnnrec.training.trainer import Trainer


@pytest.fixture(scope="module")
def parts():
    return gnnrec.split(synthetic.generate(150, 120, 2200, communities=3, seed=1).log, ratios=(0.7, 0.1, 0.2), seed=0)


@pytest.fixture(scope="module", params=[gnnrec.LightGCN, gnnrec.NGCF, gnnrec.GFCF])
def fitted(request, parts):
    if request.param is gnnrec.GFCF:
        return gnnrec.GFCF(factors=8).fit(parts[0], valid=parts[1])
    return request.param(dim=12, layers=2, epochs=3, batch_size=256).fit(parts[0], valid=parts[1])


def all_scores(estimator, num_users, num_items) -> np.ndarray:
    items, scores = estimator.model.scorer().topk(torch.arange(num_users), num_items, None)
    dense = np.zeros((num_users, num_items))
    np.put_along_axis(dense, items.long().numpy(), scores.double().numpy(), axis=1)
    return dense


def brute_force(scores, seen, test, k) -> dict[str, float]:
    recalls, ndcgs = [], []
    for user in range(len(scores)):
        relevant = {int(i) for i in test.items[test.users == user]}
        if not relevant:
            continue
        order = sorted((i for i in range(scores.shape[1]) if i not in seen[user]), key=lambda i: (-scores[user, i], i))
        hits = [item in relevant for item in order[:k]]
        recalls.append(sum(hits) / len(relevant))
        ideal = sum(1 / np.log2(rank + 2) for rank in range(min(k, len(relevant))))
        ndcgs.append(sum(hit / np.log2(rank + 2) for rank, hit in enumerate(hits)) / ideal)
    return {f"recall@{k}": float(np.mean(recalls)), f"ndcg@{k}": float(np.mean(ndcgs))}


def seen_of(*parts) -> dict[int, set[int]]:
    seen: dict[int, set[int]] = {user: set() for user in range(parts[0].num_users)}
    for part in parts:
        for user, item in zip(part.users.tolist(), part.items.tolist()):
            seen[user].add(item)
    return seen


def test_metrics_are_those_of_brute_force(fitted, parts):
    train, valid, test = parts
    scores = all_scores(fitted, train.num_users, train.num_items)
    metrics = fitted.evaluate(test, ks=(5, 20))
    for k in (5, 20):
        for name, value in brute_force(scores, seen_of(train, valid), test, k).items():
            assert metrics[name] == pytest.approx(value, abs=1e-12)


def test_metrics_do_not_depend_on_the_block(fitted, parts, monkeypatch):
    whole = fitted.evaluate(parts[2])
    monkeypatch.setattr(evaluate_module, "users_at_a_time", lambda k, on_gpu: 7)
    assert fitted.evaluate(parts[2]) == whole


def test_a_k_beyond_the_items_and_an_empty_part(parts):
    seen = graph_of(parts[0]).user_item()
    with pytest.raises(ConfigError, match=r"evaluation.k: is \[121\], but there are only 120 items"):
        Evaluator(parts[2], seen, [121])
    with pytest.raises(DataError, match="holds no interaction"):
        Evaluator(parts[2].take(np.arange(0)), seen, [20])


def test_recommendations_come_with_the_users_ids(fitted, parts):
    train, valid, _ = parts
    scores = all_scores(fitted, train.num_users, train.num_items)
    seen = seen_of(train, valid)
    users = ["u003", "u150", "u003"]
    frame = fitted.recommend(users, k=7)
    assert list(frame.columns) == ["user", "item", "rank", "score"]
    assert frame["user"].tolist() == [user for user in users for _ in range(7)]
    assert frame["rank"].tolist() == 3 * list(range(1, 8))
    for user, rows in frame.iloc[:14].groupby("user"):
        number = int(user[1:]) - 1
        order = sorted(set(range(120)) - seen[number], key=lambda i: (-scores[number, i], i))[:7]
        assert rows["item"].tolist() == [f"i{item + 1:03}" for item in order]
        assert np.allclose(rows["score"], scores[number, order])
    everything = fitted.recommend(k=120)
    assert everything["user"].nunique() == train.num_users
    pairs = set(zip(everything["user"], everything["item"]))
    assert len(pairs) == len(everything) == 150 * 120 - sum(map(len, seen.values()))
    assert len(fitted.recommend(users[:1], k=120, exclude_seen=False)) == 120


def test_unknown_users_and_bad_k(fitted):
    with pytest.raises(DataError, match=r"2 of 3 user ids were not in training, such as \['nobody', '7'\]"):
        fitted.recommend(["u003", "nobody", 7])
    with pytest.raises(DataError, match=r"is the text 'u003'. Give a list: \['u003'\]"):
        fitted.recommend("u003")
    assert len(fitted.recommend(pd.Series(["u003"], index=[5]), k=2)) == 2
    for k in (0, 121):
        with pytest.raises(ConfigError, match=f"k: is {k}. It must lie within 1 and 120"):
            fitted.recommend(["u003"], k=k)


def test_rankings_do_not_depend_on_who_is_asked_together(fitted):
    together = fitted.recommend(k=9).set_index("user")
    for user in ("u001", "u064", "u150"):
        alone = fitted.recommend([user], k=9).set_index("user")
        assert alone.equals(together.loc[[user]])  # scores bit for bit


def test_parts_that_were_read_apart_are_refused(fitted, parts):
    """Their numbers mean other items; silently wrong metrics would be the result."""
    apart = gnnrec.read_interactions(parts[2].to_pandas())
    with pytest.raises(DataError, match=r"ids \(\d+\) are numbered otherwise .*Read the parts together"):
        fitted.evaluate(apart)
    with pytest.raises(DataError, match="read_split"):
        type(fitted)().fit(parts[0], valid=apart)


def test_new_users_by_their_items(fitted, parts):
    """Unknown items are passed over; the items given are left out; the order of users is that of the log's ids."""
    table = pd.DataFrame({"user": ["new", "new", "new", "other"], "item": ["i001", "i005", "unheard of", "i100"]})
    frame = fitted.recommend_new_users(gnnrec.read_interactions(table), k=4)
    assert frame["user"].tolist() == ["new"] * 4 + ["other"] * 4
    assert not set(frame["item"][:4]) & {"i001", "i005"}
    lost = gnnrec.read_interactions(pd.DataFrame({"user": ["x"], "item": ["unheard of"]}))
    with pytest.raises(DataError, match=r"1 users have no item of the training data, such as \['x'\]"):
        fitted.recommend_new_users(lost)


def test_a_new_user_with_a_known_history_gets_what_gfcf_gives_the_known_one(parts):
    train = parts[0]
    estimator = gnnrec.GFCF(factors=8).fit(train)
    history = train.to_pandas()
    history = history[history["user"] == "u010"].assign(user="twin")
    new = estimator.recommend_new_users(gnnrec.read_interactions(history), k=9)
    known = estimator.recommend(["u010"], k=9)
    assert new["item"].tolist() == known["item"].tolist()


def test_similar_items(fitted):
    frame = fitted.similar_items(["i007", "i119"], k=5)
    assert list(frame.columns) == ["item", "similar", "rank", "score"]
    vectors = fitted.model.scorer().item_vectors.double().numpy()
    cosine = vectors @ vectors[6] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[6])
    cosine[6] = -np.inf
    assert frame["similar"][:5].tolist() == [f"i{item + 1:03}" for item in np.argsort(-cosine)[:5]]
    assert "i007" not in frame["similar"][:5].tolist()
    assert np.allclose(frame["score"][:5], np.sort(cosine)[::-1][:5], atol=1e-6)


def test_embeddings(fitted, parts, tmp_path):
    scorer = fitted.model.scorer()
    if isinstance(fitted, gnnrec.GFCF):
        with pytest.raises(ConfigError, match="no embeddings of users"):
            recommend.embeddings(scorer, parts[0].user_ids, parts[0].item_ids)
        return
    tables = recommend.embeddings(scorer, parts[0].user_ids, parts[0].item_ids)
    recommend.write_embeddings(tables, tmp_path / "vectors")
    users, items = (pq.read_table(tmp_path / "vectors" / f"{side}.parquet") for side in ("users", "items"))
    assert users["id"][3].as_py() == "u004"
    product = np.dot(users["vector"][3].as_py(), items["vector"][5].as_py())
    assert product == pytest.approx(all_scores(fitted, 150, 120)[3, 5], rel=1e-5)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json"])
def test_tables_are_written_and_read_back(tmp_path, suffix):
    frame = pd.DataFrame({"user": ["a"], "item": ["b"], "rank": [1], "score": [0.5]})
    out = tmp_path / f"top{suffix}"
    recommend.write_table(frame, out)
    readers = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".json": pd.read_json}
    assert readers[suffix](out).to_dict("records") == frame.to_dict("records")
    with pytest.raises(ConfigError, match=r"Let it end in \.parquet, \.csv, \.json"):
        recommend.write_table(frame, tmp_path / "top.xlsx")


def test_ids_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("u1\n\nu2\n")
    (tmp_path / "b.csv").write_text("user,age\nu1,3\nu2,4\n")
    (tmp_path / "c.csv").write_text("whatever\n7\n8\n")
    assert recommend.read_ids(tmp_path / "a.txt", "user") == ["u1", "u2"]
    assert recommend.read_ids(tmp_path / "b.csv", "user") == ["u1", "u2"]
    (tmp_path / "d.csv").write_text("user\n007\n8\n")
    assert recommend.read_ids(tmp_path / "d.csv", "user") == ["007", "8"]
    with pytest.raises(DataError, match=r"has no column 'user', only \['whatever'\]"):
        recommend.read_ids(tmp_path / "c.csv", "user")
    with pytest.raises(DataError, match="has no column 'item'"):
        recommend.read_ids(tmp_path / "b.csv", "item")
    with pytest.raises(DataError, match=r"missing.txt: cannot be read"):
        recommend.read_ids(tmp_path / "missing.txt", "user")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="holds no ids"):
        recommend.read_ids(tmp_path / "empty.txt", "user")


def test_a_recipe_from_python(parts):
    """The same bits as the model, loss, optimiser and loop that the command line would make."""
    overrides = "model.dim=12", "trainer.epochs=4", "loss.precision=float32"
    fitted = gnnrec.Recipe("large_batch", *overrides, seed=3).fit(parts[0])
    config = composed(["experiment=large_batch", *overrides])
    model = models.build(config.model, graph_of(parts[0]), 3)
    Trainer(model, config.trainer, config.loss, config.optimizer, seed=3).fit()
    assert torch.equal(fitted.model.embedding, model.embedding)
    assert fitted.evaluate(parts[2])["recall@20"] > 0.25
    assert len(fitted.recommend(k=3)) == 3 * 150


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("large_batsh", "model.dim=8", "experiment: is 'large_batsh'. Did you mean large_batch"),
        ("large_batch", "model.dims=8", "model.dims=8: cannot be used: .*model.dims"),
        ("large_batch", "model.dim", "cannot be used"),
        ("large_batch", "model.dim=0", "model.dim: is 0"),
        ("large_batch", "seed=5", "seed: has no effect here"),
        ("large_batch", "+data.k_core=5", "data.k_core: has no effect here"),
        ("large_batch", "trainer.monitor=ndcg@20", "trainer.monitor: has no effect here"),
    ],
)
def test_a_recipe_that_is_none(name, override, message):
    with pytest.raises(ConfigError, match=message):
        gnnrec.Recipe(name, override)


def test_recipes_within_an_application_of_hydra():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        recipe = gnnrec.Recipe("fastest")
        assert compose("train").optimizer.lr != recipe.optimizer.lr == 0.04  # the application goes on
