from moemoe_jax.inference.fingerprint import input_digest


def test_what_changes_the_input_changes_its_digest(tmp_path):
    folder, output = tmp_path / "shop", tmp_path / "shop" / "answers.jsonl"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"id": "a"}\n')
    seen = [input_digest(f"jsonl:{folder}", output)]
    # What a job itself leaves there is no input.
    output.write_text("{}")
    (folder / "answers.jsonl.rejects.jsonl").write_text("{}")
    (folder / ".answers.jsonl.parts").mkdir()
    # Nor is what lies in other folders, but for the files that records name.
    (folder / "runs").mkdir()
    (folder / "runs" / "metrics.jsonl").write_text("{}")
    assert input_digest(f"jsonl:{folder}", output) == seen[0]
    for path, content in (("train.jsonl", '{"id": "b"}\n'), ("c", "")):
        (folder / path).write_text(content)
        seen.append(input_digest(f"jsonl:{folder}", output))
    seen.append(input_digest(f"jsonl:{folder / 'train.jsonl'}", output))
    seen += [input_digest(f"catalogue:products={n}", output) for n in (3, 4)]
    assert len(set(seen)) == len(seen)


def test_a_file_of_the_outputs_name_is_input_where_the_output_goes_elsewhere(tmp_path):
    folder, output = tmp_path / "shop", tmp_path / "out" / "a.jsonl"
    folder.mkdir()
    seen = []
    for content in ('{"id": "a"}\n', '{"id": "b"}\n'):
        (folder / "a.jsonl").write_text(content)
        seen.append(input_digest(f"jsonl:{folder}", output))
    (folder / "a.jsonl.old.jsonl").write_text("{}")
    seen.append(input_digest(f"jsonl:{folder}", folder / "a.jsonl"))
    assert len(set(seen)) == 3
