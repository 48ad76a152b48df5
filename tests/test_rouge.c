/*
 * test_rouge.c -- ROUGE against examples worked by hand, and longest common subsequences against
 * all subsequences.
 */
#include "train/rouge.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

static train_rouge rouge(const char *candidate, const char *reference)
{
    train_rouge r;
    assert_int_equal(train_rouge_of(candidate, reference, &r, NULL), AG_OK);
    return r;
}

/* hits of the candidate's and the reference's number of things */
static void is(train_rouge_score s, int hits, int candidate, int reference)
{
    const double p = (double)hits / candidate, r = (double)hits / reference;
    const double f = hits ? 2 * p * r / (p + r) : 0;
    if (fabs(s.precision - p) > 1e-12 || fabs(s.recall - r) > 1e-12 || fabs(s.f1 - f) > 1e-12)
        fail_msg("precision %g, recall %g, F1 %g; expected %g, %g, %g", s.precision, s.recall,
                 s.f1, p, r, f);
}

/* Lin 2004, section 3.1: S1 the reference, S2 and S3 have the same bigrams in common with it. */
static void the_papers_sentences(void **state)
{
    (void)state;
    const char *s1 = "police killed the gunman";
    train_rouge r = rouge("police kill the gunman", s1);
    is(r.n1, 3, 4, 4);
    is(r.n2, 1, 3, 3);
    is(r.l, 3, 4, 4);
    r = rouge("the gunman kill police", s1);
    is(r.n1, 3, 4, 4);
    is(r.n2, 1, 3, 3);
    is(r.l, 2, 4, 4);
    r = rouge("the gunman police killed", s1);       /* S4: -L sees one of two halves */
    is(r.n2, 2, 3, 3);
    is(r.l, 2, 4, 4);
}

/* Section 3.2: w1 .. w5 against w1 w2 w6 w7 w8 and w1 w3 w8 w9 w5: the union has 4 of 5. */
static void the_papers_union(void **state)
{
    (void)state;
    const train_rouge r = rouge("w1 w2 w6 w7 w8\nw1 w3 w8 w9 w5", "w1 w2 w3 w4 w5");
    is(r.lsum, 4, 10, 5);
    is(r.l, 4, 10, 5);                               /* as one sentence: w1 w2 w3 w5 */
    is(r.n1, 4, 10, 5);
}

static void words(void **state)
{
    (void)state;
    is(rouge("The CAT, sat!", "the cat sat").n1, 3, 3, 3);
    is(rouge("don't", "don t").n2, 1, 1, 1);
    is(rouge("a a a a", "a a b").n1, 2, 4, 3);       /* at most as often as the other has it */
    is(rouge("a a a a", "a a b").n2, 1, 3, 2);
    is(rouge("cats", "cat").n1, 0, 1, 1);            /* no stemming; no beginning is enough */
    is(rouge("x1 2", "x1 2").n2, 1, 1, 1);
    const train_rouge none = rouge("", "a b"), both = rouge(" .,", "!");
    assert_true(none.n1.f1 == 0 && none.l.recall == 0 && none.lsum.precision == 0);
    assert_true(both.n1.f1 == 0 && both.n2.f1 == 0 && both.l.f1 == 0 && both.lsum.f1 == 0);
}

/* Sentences in another order cost -L, not -Lsum; a word of the candidate counts once. */
static void sentences(void **state)
{
    (void)state;
    const train_rouge r = rouge("c d e. a b.", "a b. c d e");
    is(r.l, 3, 5, 5);
    is(r.lsum, 5, 5, 5);
    is(rouge("a b", "a b\na b").lsum, 2, 2, 4);
    is(rouge("a b. a c", "a b c").lsum, 3, 4, 3);
    is(rouge("3.14 is pi", "3.14\nis pi").lsum, 4, 4, 4);        /* 3.14 is no end of a sentence */
    is(rouge("x a y b", "a b x y").lsum, 2, 4, 4);
}

/* Bits of `which` choose words of a[n]: are they in b[m] in this order? */
static int in_order(unsigned which, const char *a, int n, const char *b, int m)
{
    int j = 0, count = 0;
    for (int i = 0; i < n; i++) {
        if (!(which >> i & 1))
            continue;
        while (j < m && b[j] != a[i])
            j++;
        if (j++ == m)
            return -1;
        count++;
    }
    return count;
}

static void against_all_subsequences(void **state)
{
    uint32_t noise = 1;
    (void)state;
    for (int trial = 0; trial < 300; trial++) {
        char a[11], b[11], ta[32] = "", tb[32] = "";
        const int n = 1 + trial % 10, m = 1 + trial / 10 % 10;
        int best = 0;
        for (int i = 0; i < n + m; i++) {
            noise = noise * 1664525 + 1013904223;
            char *to = i < n ? &a[i] : &b[i - n];
            *to = (char)('a' + (noise >> 24) % 4);
            snprintf((i < n ? ta : tb) + strlen(i < n ? ta : tb), 4, "%c ", *to);
        }
        for (unsigned which = 0; which < 1u << n; which++) {
            const int count = in_order(which, a, n, b, m);
            best = count > best ? count : best;
        }
        is(rouge(ta, tb).l, best, n, m);
        is(rouge(ta, tb).lsum, best, n, m);          /* one sentence each */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_papers_sentences), cmocka_unit_test(the_papers_union),
        cmocka_unit_test(words), cmocka_unit_test(sentences),
        cmocka_unit_test(against_all_subsequences),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
