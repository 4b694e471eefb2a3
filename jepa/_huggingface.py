"""Names and configuration of `VJEPA2Model` of transformers, in both directions"""
import torch

_names = dict(
    encoder={
        'patch_embed.': 'encoder.embeddings.patch_embeddings.',
        'blocks.': 'encoder.layer.',
        'norm.': 'encoder.layernorm.'},
    predictor={
        'predictor_embed.': 'predictor.embeddings.predictor_embeddings.',
        'predictor_blocks.': 'predictor.layer.',
        'predictor_norm.': 'predictor.layernorm.',
        'predictor_proj.': 'predictor.proj.'})
_mask_tokens = 'predictor.embeddings.mask_tokens' # all in one tensor
_thirds = ('query', 'key', 'value')               # of qkv

_encoder_fields = dict(
    num_frames='frames_per_clip', height='crop_size', width='crop_size', patch_size='patch_size',
    tubelet_size='tubelet_size', embed_dim='hidden_size', depth='num_hidden_layers', num_heads='num_attention_heads',
    mlp_ratio='mlp_ratio', norm_eps='layer_norm_eps')
_predictor_fields = dict(
    embed_dim='pred_hidden_size', depth='pred_num_hidden_layers', num_heads='pred_num_attention_heads',
    mlp_ratio='pred_mlp_ratio', num_mask_tokens='pred_num_mask_tokens', zero_init='pred_zero_init_mask_tokens')


def from_huggingface(tensors:dict) -> tuple[dict, list]: # parts; names of no part, such as a pooler's
    "Our parts and names"
    parts, rest = dict(encoder={}, predictor={}), []
    ours_of = {theirs: ours for table in _names.values() for ours, theirs in table.items()}
    tensors = {n.removeprefix('vjepa2.'): t for n, t in tensors.items()} # of a classifier
    for name, tensor in tensors.items():
        part, _, inner = name.partition('.')
        theirs = next((prefix for prefix in ours_of if name.startswith(prefix)), None)
        if name == _mask_tokens: parts[part].update({f'mask_tokens.{i}': t for i, t in enumerate(tensor)})
        elif part not in parts: rest.append(name)
        elif theirs is None: parts[part][inner] = tensor # unexpected, for the report
        else: parts[part][ours_of[theirs] + _our_attention(name.removeprefix(theirs))] = tensor
    return {part: _join(state) for part, state in parts.items() if state}, rest


def _our_attention(name): return name.replace('attention.', 'attn.')


def _join(state:dict) -> dict:
    "`qkv` from its thirds; where one is lost, the others stay as they are, for the report"
    for name in [n for n in state if '.attn.query.' in n]:
        thirds = [name.replace('query', k) for k in _thirds]
        if all(t in state for t in thirds):
            state[name.replace('query', 'qkv')] = torch.cat([state.pop(t) for t in thirds])
    return state


_head_names = {
    'pooler.cross_attention_layer.': 'pooler.cross_attention_block.',
    'pooler.self_attention_layers.': 'pooler.blocks.',
    'classifier.': 'linear.'}
_inner_names = {
    '.layer_norm': '.norm', '.self_attn.out_proj.': '.attn.proj.',
    '.self_attn.': '.attn.', '.cross_attn.q_proj.': '.xattn.q.', '.cross_attn.': '.xattn.'}
_joined = {
    '.attn.qkv.': ('.attn.q_proj.', '.attn.k_proj.', '.attn.v_proj.'),
    '.xattn.kv.': ('.xattn.k_proj.', '.xattn.v_proj.')}


def is_classifier(tensors:dict) -> bool:
    "Whether tensors hold the head of a `VJEPA2ForVideoClassification`, or a part of it"
    return 'classifier.weight' in tensors or any(n.startswith(tuple(_head_names)) for n in tensors)


def head_from_huggingface(tensors:dict) -> dict: # of the whole classifier
    "The head with our names; what is neither encoder nor predictor stays, so that nothing is left out in silence"
    _, rest = from_huggingface(tensors)
    return _join_parts({_our_head(name): tensors[name] for name in rest})


def _our_head(name:str) -> str:
    for theirs, ours in _head_names.items():
        if name.startswith(theirs): name = ours + name.removeprefix(theirs)
    for theirs, ours in _inner_names.items(): name = name.replace(theirs, ours)
    return name


def _join_parts(state:dict) -> dict:
    "`qkv` and `kv` from their parts; where one is lost, the others stay as they are, for the report"
    for whole, parts in _joined.items():
        for name in [n for n in state if parts[0] in n]:
            names = [name.replace(parts[0], part) for part in parts]
            if all(n in state for n in names):
                state[name.replace(parts[0], whole)] = torch.cat([state.pop(n) for n in names])
    return state


def labels_from_huggingface(c:dict, n:int, path) -> list|None: # class names in label order, where the file has them
    "The names of `id2label`; a table of another length or with gaps is refused"
    table = c.get('id2label')
    if not table: return None
    names = {int(k): str(name) for k, name in table.items() if str(k).isdecimal()}
    if sorted(names) != list(range(n)) or len(table) != n:
        raise ValueError(f'{path}: config.json names {len(table)} classes (id2label), but the classifier has {n}')
    return [names[i] for i in range(n)]


def to_huggingface(encoder:dict, predictor:dict) -> dict:
    "Their names for our tensors"
    mask_tokens = [n for n in predictor if n.startswith('mask_tokens.')]
    out = {_mask_tokens: torch.stack([predictor[n] for n in mask_tokens])}
    rest = {n: t for n, t in predictor.items() if n not in mask_tokens}
    for part, state in dict(encoder=encoder, predictor=rest).items():
        for name, tensor in state.items():
            theirs = _their_name(part, name)
            if 'attention.qkv' not in theirs: out[theirs] = tensor
            else: out |= {theirs.replace('qkv', k): t.contiguous() for k, t in zip(_thirds, tensor.chunk(3))}
    return out


def _their_name(part:str, name:str) -> str:
    ours = next(prefix for prefix in _names[part] if name.startswith(prefix))
    return _names[part][ours] + name.removeprefix(ours).replace('attn.', 'attention.')


def config_from_huggingface(c:dict|None) -> dict:
    "Fields of our configurations from a `VJEPA2Config`"
    if c is None: return {}
    if c.get('model_type') != 'vjepa2':
        raise ValueError(f"the folder holds a model of type '{c.get('model_type')}', not 'vjepa2'")
    if c.get('hidden_act', 'gelu') != 'gelu':
        raise ValueError(f"config.json says hidden_act='{c['hidden_act']}'; only 'gelu' is known here")
    def fields(table): return {ours: c[theirs] for ours, theirs in table.items() if theirs in c}
    return dict(encoder=dict(fields(_encoder_fields), positions='rope'), predictor=fields(_predictor_fields))


def config_to_huggingface(encoder, predictor, num_heads:int) -> dict: # configurations; heads of the predictor
    "A `VJEPA2Config`"
    tables = ((encoder, _encoder_fields), (predictor, _predictor_fields))
    fields = {theirs: getattr(config, ours) for config, table in tables for ours, theirs in table.items()}
    return dict(fields, model_type='vjepa2', architectures=['VJEPA2Model'], pred_num_attention_heads=num_heads)
