"""Forms of a training's step whose state lies outside of where it computes: what passes by, and what stays."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

from gnnrec.config import NGCFConfig
from gnnrec.memtier.costs import Access
from gnnrec.memtier.demands import FINAL, STATE, Demand, Moved, Pass, Streamed
from gnnrec.memtier.layout import ROWS_BYTES, columns_block_bytes
from gnnrec.memtier.ring import read_only
from gnnrec.memtier.workload import FLOAT, SELECTED, Workload
from gnnrec.ops.lightgcn_propagate import FEW
from gnnrec.ops.ngcf_layer.passes import CHUNK_ROWS, CHUNKS


def streamed(workload: Workload, panel: int) -> Streamed:
    """A step with BPR in panels of so many columns, embeddings and state in files."""
    form = ngcf if isinstance(workload.model, NGCFConfig) else lightgcn
    return form(workload, panel)


def state(workload: Workload) -> Streamed:
    """A step whose optimizer's state alone lies in files: it passes by while the optimizer works."""
    moved, optimizer = workload.step(), Moved(workload.cache_bytes)
    workload.adam(optimizer)
    sizes = {name: size for name, size in workload.sizes().items() if name not in STATE}
    update = tuple(access for demand in ("gradient", "embedding", *STATE) for access in optimizer.of(demand))
    files = tuple(Demand(name, workload.sizes()[name], optimizer.of(name)) for name in STATE)
    demands = (*workload.graph(moved), *workload.demands(sizes, moved))
    size, count = sum(demand.bytes for demand in files), len(files)
    return Streamed(workload.dim, 1, size, demands, update, files, count, count)


def with_graph_in_file(workload: Workload, form: Streamed, alignment: int = 4096, readers: int = 2) -> Streamed:
    """The same with the columns of the graph in a file, which every layer reads for every panel, forward and backward:
    see `gnnrec.memtier.adjacency`. alignment: bytes, of reads; readers: of so many at a time."""
    nodes, entries, layers = workload.nodes, workload.entries, workload.layers
    layer = float(form.panels * entries * FLOAT)
    of_batch = workload.batch_rows()[1] if layers else 0.0
    graph = next(demand for demand in form.demands if demand.name == "graph")
    # Which entries of a block belong to rows of the batch is written down, and these are copied, for every panel.
    chosen = Access("mixed", SELECTED * form.panels * of_batch)
    rows = Demand("pointers", 8 * (nodes + 1) + FLOAT * nodes, (*graph.accesses, chosen))
    block = columns_block_bytes(entries, max(workload.users.longest, workload.items.longest), alignment)
    buffers = Demand("graph_buffers", (read_only(readers) + SELECTED // FLOAT) * block)
    others = tuple(demand for demand in form.demands if demand is not graph)
    reads = ((2 * layers - 1) * layer, layer) if layers else (0.0, 0.0)

    def read(one: Pass) -> Pass:
        """A pass that gathers, and so reads the graph; one that gathers a part of it chooses rows."""
        compute = (*one.compute, chosen) if one.gathers < 1 else one.compute
        return replace(one, compute=compute, transfer=(*one.transfer, Access("read", layer)))

    passes = tuple(read(one) if one.gathers else one for one in form.passes)
    return replace(
        form,
        demands=(rows, buffers, *others),
        files=(*form.files, Demand("graph", entries * FLOAT, (Access("read", sum(reads)),))),
        passes=passes,
        graph_reads=reads,
    )


def lightgcn(workload: Workload, panel: int) -> Streamed:
    """Of LightGCN; every pass below happens once a panel."""
    moved, panels = Moved(workload.cache_bytes), ceil(workload.dim / panel)
    dense, columns = workload.nodes * panel * FLOAT, panel * panels
    numbers = workload.nodes * columns * FLOAT
    # Backward through all layers, the first from the batch's rows; forward through all but the last, and that for the
    # batch's rows alone.
    moved.all("panels", write=numbers)
    rows, entries = workload.batch_rows()
    few = workload.layers > 1 and not workload.on_gpu and rows <= FEW * workload.nodes
    workload.propagate(moved, "panels", "panels", panel, FLOAT, times=panels, layers=workload.layers - few)
    if few:
        workload.read_graph(moved, panels)
        moved.rows("batch_rows", panels * entries * panel * FLOAT, panel * FLOAT, int(rows) * panel * FLOAT)
        moved.all("panels", write=numbers)
    workload.propagate(moved, "panels", "panels", panel, FLOAT, times=panels, layers=workload.layers - 1)
    if workload.layers:
        workload.gather_neighbours(moved, "panels", panel * FLOAT, panels * entries / max(workload.entries, 1))
        moved.all("graph", read=panels * 8.0 * entries)
    moved.all("batch_rows", mixed=8 * rows * columns * FLOAT)  # final and ego rows come, gradients of both go
    for _ in range(panels):
        workload.triples(moved, "batch_rows", panel * FLOAT)
    workload.places(moved, rows)
    moved.all("panels", read=numbers, write=numbers)  # the gradient, and the new embedding for the forward pass

    # Final rows of this step's batch, which give way to those of the next one panel by panel.
    most = min(workload.nodes, (2 + workload.negatives) * workload.batch)
    sizes = {"panels": 3 * dense, "batch_rows": most * (columns + (3 + few) * panel) * FLOAT}
    if few:  # which of them a node has, as a number, a truth value and a bit
        sizes["places"] = 6 * workload.nodes
    ways = (
        (Access("to_gpu", numbers), Access("from_gpu", numbers)) if workload.on_gpu else (Access("mixed", 2 * numbers),)
    )
    files = [Demand(name, numbers, ways) for name in ("embedding", *STATE)]
    if workload.held_out.valid:
        files.append(Demand("best", numbers))
    matrices = len(files)
    files.append(Demand(FINAL, numbers))
    update = (Access("mixed", 6 * numbers),)
    if workload.on_gpu:  # pointers of blocks of rows, and which rows of them are short
        sizes["row_blocks"] = 16 * workload.nodes
    demands = (*workload.graph(moved), *workload.demands(sizes, moved))
    last = Moved(workload.cache_bytes)
    workload.propagate(last, "panels", "panels", panel, FLOAT, times=panels, layers=min(workload.layers, 1))
    return Streamed(panel, panels, 3 * dense, demands, update, tuple(files), 3, matrices, last.accesses())


def ngcf(workload: Workload, panel: int) -> Streamed:
    """Of NGCF: see `gnnrec.models.streamed_ngcf`."""
    panels, inner = ceil(workload.dim / panel), workload.layers - 1
    numbers, norms = workload.nodes * workload.dim * FLOAT, workload.nodes * FLOAT
    rows, entries = workload.batch_rows()
    batch, products = rows * workload.dim * FLOAT, 4.0 * workload.dim**2  # a row's two products, forward
    state = dict.fromkeys(("embedding", *STATE), (1, 1))
    total, files, passes = Moved(workload.cache_bytes), Moved(workload.cache_bytes), list[Pass]()

    def add(
        moved: Moved,
        ways: dict[str, tuple[int, int]],
        flops: float = 0.0,
        waited: float = 0.0,
        gathers: float = 0.0,
    ) -> None:
        """A pass that reads and writes the files so many times each."""
        transfer = Moved(workload.cache_bytes)
        pattern = "mixed" if any(write for _, write in ways.values()) else "read"
        for name, counts in ways.items():
            transfer.all(name, **{pattern: sum(counts) * numbers})
        moved.all("buffers", mixed=sum(map(sum, ways.values())) * numbers)
        for whole, part in ((total, moved), (files, transfer)):
            for name, accesses in part.bytes.items():
                whole.add(name, *(replace(access, bytes=count) for access, count in accesses.items()))
        passes.append(Pass(moved.accesses(), flops, transfer.accesses(), waited, gathers))

    def gathered(share: float = 1.0) -> Moved:
        """What is moved where neighbours are gathered, panel by panel, for rows with this share of all entries."""
        moved = Moved(workload.cache_bytes)
        moved.all("panels", write=numbers)
        workload.gather_neighbours(moved, "panels", panel * FLOAT, panels * share)
        workload.read_graph(moved, panels * share)
        return moved

    for layer in range(workload.layers):
        source = "layers" if layer else "embedding"
        last = layer == inner
        share = entries / max(workload.entries, 1) if last else 1.0
        moved = gathered(share)
        moved.all("batch_rows", mixed=(4 if last else 2) * batch)
        add(moved, {source: (1, 0)} | ({} if last else {"aggregates": (0, 1)}), waited=numbers, gathers=share)
        if not last:
            moved = Moved(workload.cache_bytes)
            moved.all("blocks", mixed=6 * numbers)  # rows put together and taken apart
            moved.all("norms", write=norms)
            ways = {source: (1, 0), "aggregates": (1, 0)}
            ways["layers"] = (ways.get("layers", (0, 0))[0], 1)
            add(moved, ways, workload.nodes * products)
    moved = Moved(workload.cache_bytes)
    moved.all("batch_rows", mixed=(12 + 2 * (workload.layers + 1)) * batch)
    workload.triples(moved, "batch_rows", workload.final_dim * FLOAT)
    workload.places(moved, rows)
    add(moved, {}, 3 * rows * products)
    add(gathered(), {"gradient": (0, 1)} if inner else state, gathers=1.0)
    for layer in reversed(range(inner)):
        moved = Moved(workload.cache_bytes)
        moved.all("blocks", mixed=17 * numbers)
        moved.all("norms", read=norms)
        ways = {"aggregates": (1, 1), "gradient": (1, 1)}
        ways |= {"layers": (2, 0)} if layer else {"embedding": (1, 0), "layers": (1, 0)}
        add(moved, ways, 2 * workload.nodes * products)
        ways = {"gradient": (1, 1)} if layer else {"gradient": (1, 0)} | state
        add(gathered(), {"aggregates": (1, 0)} | ways, waited=numbers, gathers=1.0)

    most = min(workload.nodes, (2 + workload.negatives) * workload.batch)
    # Rows of all columns: inputs, outputs and gradients of a layer; a block of every file. Of the weights, parts of
    # the gradients of one layer too.
    sizes = {"panels": workload.nodes * panel * FLOAT, "norms": inner * norms}
    sizes |= {"batch_rows": most * (workload.layers + 6) * workload.dim * FLOAT}
    sizes |= {"blocks": (8 + workload.layers) * min(ROWS_BYTES, numbers)}
    parts = min(max(workload.nodes // CHUNK_ROWS, 1), CHUNKS)
    sizes |= {"weights": (4 * workload.layers + parts) * 2 * (workload.dim + 1) * workload.dim * FLOAT}
    lying = {"embedding": 1, STATE[0]: 1, STATE[1]: 1, "layers": inner, "aggregates": max(inner, 1)}
    lying |= {"gradient": min(inner, 1), FINAL: workload.layers + 1, "best": bool(workload.held_out.valid)}
    return Streamed(
        panel,
        panels,
        5 * workload.nodes * panel * FLOAT,
        (*workload.graph(total), *workload.demands(sizes, total)),
        total.of("buffers"),
        tuple(Demand(name, count * numbers, files.of(name)) for name, count in lying.items() if count),
        max(5, 4 * panels),
        sum(count for name, count in lying.items() if name != FINAL),
        block_bytes=ROWS_BYTES // panels,
        passes=tuple(passes),
    )
