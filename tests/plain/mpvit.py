"""MPViT, plainly. Maps are (B, C, H, W), tokens (B, N, C)."""

import torch

HEADS = 8


def forward(model, x):
    """The maps of all built stages that ``out_indices`` asks for."""
    for layer in model.stem:
        x = layer.act(layer.norm(layer.conv(x)))
    for i, stage in enumerate(model.stages):
        x = forward_stage(stage, x)
        if i in model.out_indices:
            yield x


def forward_stage(stage, x):
    features = []
    for embed, path in zip(stage.patch_embeds, stage.paths, strict=True):
        x = embed.act(embed.norm(embed.pwconv(embed.dwconv(x))))
        if not features:
            features.append(local_path(stage.local, x))
        features.append(transformer_path(path, x))
    aggregate = stage.aggregate
    return aggregate.act(aggregate.norm(aggregate.conv(torch.cat(features, dim=1))))


def local_path(local, x):
    y = local.conv1.act(local.conv1.norm(local.conv1.conv(x)))
    y = local.act(local.norm(local.dwconv(y)))
    return x + local.conv2.norm(local.conv2.conv(y))


def transformer_path(path, x):
    height, width = x.shape[2:]
    for block in path.blocks:
        x = x + path.cpe.conv(x)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + attention(block.attn, block.norm1(tokens), path.crpe, height, width)
        tokens = tokens + block.mlp.fc2(torch.nn.functional.gelu(block.mlp.fc1(block.norm2(tokens))))
        x = tokens.transpose(1, 2).reshape(x.shape)
    return x


def attention(attn, tokens, crpe, height, width):
    batch, count, channels = tokens.shape
    qkv = attn.qkv(tokens).reshape(batch, count, 3, HEADS, channels // HEADS)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, C / heads) each
    summary = k.softmax(dim=2).transpose(2, 3) @ v
    attended = (channels // HEADS) ** -0.5 * (q @ summary)
    value_map = v.transpose(2, 3).reshape(batch, channels, height, width)
    position_map = torch.cat(
        [conv(part) for conv, part in zip(crpe.convs, value_map.split(crpe.splits, dim=1), strict=True)], dim=1
    )
    position = position_map.reshape(batch, HEADS, channels // HEADS, count).transpose(2, 3)
    out = attended + q * position
    return attn.proj(out.transpose(1, 2).reshape(batch, count, channels))
