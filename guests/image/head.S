/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The head of an arm64 Image (Linux Documentation/arch/arm64/booting.rst) around a program that is linked to a fixed
 * address.  A loader puts the Image where it likes; this moves the program to where it belongs, and jumps there with
 * x0 (the device tree) as it came.  `sdeivirt conform --export` fills in the blanks and appends the program, at
 * HEAD_SIZE.
 *
 * Where the Image lies and where the program goes may overlap either way, this code included.  So the loop that moves
 * it runs from a page of the program's that is not in the file: its stacks, at the end of its memory.
 */
#define HEAD_SIZE	4096
#define FLAGS		(1 << 1 | 1 << 3)	/* little endian, 4 KiB pages, anywhere in RAM */

	.text
	.globl _start
_start:
	b	begin
	nop
	.quad	0			// text_offset
	.quad	0			// image_size: blank
	.quad	FLAGS
	.quad	0, 0, 0
	.ascii	"ARM\x64"
	.word	0

target:	.quad	0			// blanks: where the program goes,
size:	.quad	0			// its bytes in the file, a multiple of 16,
end:	.quad	0			// the end of its memory,
entry:	.quad	0			// and its first instruction

	/* Clean and invalidate [x12, x13) to the point of coherency; uses x14 */
	.macro	flush
	sub	x14, x11, #1
	bic	x12, x12, x14
1:	dc	civac, x12
	add	x12, x12, x11
	cmp	x12, x13
	b.lo	1b
	.endm

	.balign	8
begin:
	adr	x4, _start
	add	x9, x4, #HEAD_SIZE
	ldr	x5, target
	ldr	x6, size
	ldr	x7, end
	ldr	x8, entry

	/*
	 * The MMU is off, but whoever loaded us may have had caches on: what is dirty in them must not be written back
	 * later, over what we put there.
	 */
	mrs	x11, ctr_el0
	ubfx	x11, x11, #16, #4		// DminLine: log2 of words
	mov	x12, #4
	lsl	x11, x12, x11
	mov	x12, x9
	add	x13, x9, x6
	flush
	mov	x12, x5
	mov	x13, x7
	flush
	dsb	sy

	/* The last page of the program's memory; if the Image is there, one below it. */
	sub	x12, x7, #HEAD_SIZE
	and	x12, x12, #~0xfff
	add	x13, x9, x6
	cmp	x12, x13
	b.hs	2f
	add	x14, x12, #HEAD_SIZE
	cmp	x14, x4
	b.ls	2f
	sub	x12, x12, x6
	sub	x12, x12, #(2 * HEAD_SIZE)
	and	x12, x12, #~0xfff
2:	adr	x13, mover
	adr	x14, mover_end
	mov	x15, x12
3:	ldr	w16, [x13], #4
	str	w16, [x15], #4
	cmp	x13, x14
	b.lo	3b
	dsb	sy
	ic	iallu
	dsb	sy
	isb
	br	x12

	/* x6 bytes from x9 to x5, then on at x8 */
mover:
	cmp	x5, x9
	b.hi	5f
4:	ldp	x13, x14, [x9], #16
	stp	x13, x14, [x5], #16
	subs	x6, x6, #16
	b.ne	4b
	b	7f
5:	add	x9, x9, x6
	add	x5, x5, x6
6:	ldp	x13, x14, [x9, #-16]!
	stp	x13, x14, [x5, #-16]!
	subs	x6, x6, #16
	b.ne	6b
7:	dsb	sy
	ic	iallu
	dsb	sy
	isb
	br	x8
mover_end:
