/* A binary search tree in an array of nodes. Needs MODULE and NODES. */
#include "modules.h"

typedef struct {
    uint32_t key;
    int left, right;
} node;

typedef struct {
    node nodes[NODES];
    int root, count;
} tree;

static int insert(tree *all, uint32_t key)
{
    int *link = &all->root;
    while (*link >= 0) {
        node *at = &all->nodes[*link];
        if (at->key == key)
            return 0;
        link = key < at->key ? &at->left : &at->right;
    }
    *link = all->count;
    all->nodes[all->count++] = (node){key, -1, -1};
    return 1;
}

static uint64_t walk(const tree *all, int at, uint64_t sum)
{
    if (at < 0)
        return sum;
    sum = walk(all, all->nodes[at].left, sum) * 47 + all->nodes[at].key;
    return walk(all, all->nodes[at].right, sum);
}

static int depth(const tree *all, int at)
{
    if (at < 0)
        return 0;
    int left = depth(all, all->nodes[at].left), right = depth(all, all->nodes[at].right);
    return 1 + (left > right ? left : right);
}

uint32_t MODULE(uint32_t seed)
{
    static tree all;
    all.root = -1;
    all.count = 0;
    for (int i = 0; i < NODES; i++)
        insert(&all, next_random(&seed) ^ (unsigned char)MARKER[i % (int)sizeof MARKER]);
    require(insert(&all, all.nodes[0].key) == 0);
    return fold(walk(&all, all.root, (uint64_t)depth(&all, all.root)));
}
