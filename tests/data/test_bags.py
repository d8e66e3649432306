import torch

from mhimdist.data.bags import PackedBags, bag_id


def test_bags_are_laid_end_to_end():
    bags = PackedBags.from_list([torch.ones(2, 3), torch.zeros(1, 3)], [1, 0], ["a", "b"])
    assert bags.offsets_B1.tolist() == [0, 2, 3]
    assert bags.sizes_B.tolist() == [2, 1]
    assert bags.labels_B.tolist() == [1, 0]
    assert bags.ids_B.tolist() == [bag_id("a"), bag_id("b")]
    assert len(bags) == 2


def test_select_keeps_rows_and_identity():
    bags = PackedBags.from_list([torch.arange(4.0)[:, None], torch.arange(2.0)[:, None]])
    kept = bags.select(torch.tensor([1, 3, 5]), torch.tensor([0, 2, 3]))
    assert kept.block(slice(None)).squeeze(1).tolist() == [1, 3, 1]
    assert kept.block(slice(1, 3)).squeeze(1).tolist() == [3, 1]
    assert (kept.num_rows, bags.num_rows) == (3, 6)
    again = kept.select(torch.tensor([0, 2]), torch.tensor([0, 1, 2]))
    assert again.to("cpu").block(slice(None)).squeeze(1).tolist() == [1, 1]
    assert (kept.keys, kept.ids_B.tolist()) == (bags.keys, bags.ids_B.tolist())


def test_ids_are_stable_and_positive():
    assert bag_id("tumor_001") == 6473600996282587471
    assert all(bag_id(str(i)) >= 0 for i in range(1000))
