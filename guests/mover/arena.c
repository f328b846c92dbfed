// SPDX-License-Identifier: Apache-2.0
/*
 * Pages that know what they have to be.  Each begins with its address and its generation, which is how often it has
 * been written; the rest follows from these two, and a sum ends it.  Pages are written in turn, so that what generation a page
 * must have follows from one number.  A page that was moved too early, torn or to the wrong place gives itself away, and how.
 */
#include "mover.h"

#define WORDS	512
#define SUM	(WORDS - 1)

static u64 generation(const struct arena *a, u64 i)
{
	return a->written / a->pages + (i < a->written % a->pages);
}

static u64 *page(const struct arena *a, u64 i)
{
	return (u64 *)(a->base + (i << 12));
}

/* Word after word is a step further, since a page takes long enough to look at as it is. */
static u64 first_word(u64 address, u64 gen) { return mix(address ^ mix(gen)); }
static u64 step_of(u64 first) { return mix(first) | 1; }

static void write_page(u64 *p, u64 address, u64 gen)
{
	u64 word = first_word(address, gen), step = step_of(word), sum = address + gen;

	p[0] = address;
	p[1] = gen;
	for (u32 i = 2; i < SUM; i++, word += step) {
		p[i] = word;
		sum += word;
	}
	p[SUM] = sum;
}

static void say_page(const volatile u64 *p, u64 address, u64 gen, u32 word)
{
	u64 sum = 0;
	const char *how = "it is torn";

	for (u32 i = 0; i < SUM; i++)
		sum += p[i];
	if (!p[0] && !p[1] && !sum && !p[SUM])
		how = "it is all zeroes";
	else if (sum == p[SUM])
		how = p[0] != address ? "it is another page" : "it is of another time";
	failed("page 0x%lx, generation %lu: word %u is wrong, %s: address 0x%lx, generation %lu", address, gen, word, how,
	       p[0], p[1]);
}

static void check_page(const u64 *p, u64 address, u64 gen)
{
	u64 word = first_word(address, gen), step = step_of(word), sum = address + gen;
	u32 i;

	if (p[0] != address || p[1] != gen)
		say_page(p, address, gen, p[0] == address);
	for (i = 2; i < SUM && p[i] == word; i++, word += step)
		sum += word;
	if (i != SUM || p[SUM] != sum)
		say_page(p, address, gen, i);
}

void arena_init(struct arena *a, u64 base, u64 pages, u64 rate)
{
	*a = (struct arena){ .base = base, .pages = pages, .rate = rate };
	for (u64 i = 0; i < pages; i++)
		write_page(page(a, i), (u64)page(a, i), 1);
	a->written = pages;
}

void arena_step(struct arena *a, u64 pages)
{
	for (; pages; pages--) {
		u64 i = a->next, *p = page(a, i), gen = generation(a, i);

		check_page(p, (u64)p, gen);
		if (i == a->written % a->pages && (!a->rate || a->left)) {
			write_page(p, (u64)p, gen + 1);
			a->written++;
			a->left -= !!a->rate;
		}
		if (++a->next == a->pages) {
			a->next = 0;
			a->left = a->rate;
			a->passes++;
		}
	}
}

void arena_check_all(const struct arena *a)
{
	for (u64 i = 0; i < a->pages; i++)
		check_page(page(a, i), (u64)page(a, i), generation(a, i));
}

void arena_check_alias(const struct arena *a, u64 i, u64 at)
{
	check_page((const u64 *)at, (u64)page(a, i), generation(a, i));
}
