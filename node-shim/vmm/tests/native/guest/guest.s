// A guest without an operating system, for tests that run natively on any /dev/kvm, KVM_PVM too: that one interprets what runs at CPL0, so
// the guest sets up long mode with everything mapped one to one, drops to CPL3, and polls COM1. It is loaded at 1 MiB
// and entered by PVH: 32-bit protected mode without paging.
//
// Commands are single bytes; each is answered by a line.
//   s   state: `state COUNTER REGISTER XMM KVMCLOCK`, each 16 hexadecimal digits
//   c   checksum of the 16 MiB from 16 MiB on, which were filled at the start: `sum VALUE`
//   t   touches the first byte of each page of 64 MiB from 32 MiB on: `touched`
//   x   resets the machine
//   q   powers it off
// While nothing is asked the counter in memory and the one in a register count polls together.

.set BASE, 0x100000
.set PML4, 0x200000
.set PDPT, 0x201000
.set DIRECTORY, 0x202000
.set CLOCK, 0x210000
.set COUNTER, 0x211000
.set STACK, 0x220000
.set TASK, 0x250000
.set TASK_LIMIT, 104 + 0x1000 / 8
// Where the header has what: assemblers do not agree on how a difference of labels is written in an operand.
.set GDT_POINTER, BASE + 8
.set GDT, BASE + 16
.set GDT_BYTES, 72
.set LONG_MODE, BASE + 88
.set FILLED, 0x1000000
.set FILLED_WORDS, 0x200000
.set TOUCHED, 0x2000000

.code32
.globl node_shim_test_guest_start
node_shim_test_guest_start:
    jmp 9f
.balign 8
    .short GDT_BYTES - 1
    .long GDT
.balign 8
    // Null; code and data for CPL0; two that SYSEXIT skips; code and data for CPL3; task state segment.
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0
    .quad 0
    .quad 0x00affb000000ffff
    .quad 0x00cff3000000ffff
    .quad 0x0000890000000000 + (TASK & 0xffff) * 0x10000 + (TASK / 0x10000) * 0x100000000 + TASK_LIMIT
    .quad 0
    .long BASE + long_mode - node_shim_test_guest_start
9:
    mov esp, STACK
    // One GiB in pages of 2 MiB, present, writable, for users.
    mov dword ptr [PML4], PDPT + 7
    mov dword ptr [PDPT], DIRECTORY + 7
    xor ecx, ecx
    mov eax, 0x87
2:
    mov [DIRECTORY + ecx * 8], eax
    mov dword ptr [DIRECTORY + ecx * 8 + 4], 0
    add eax, 0x200000
    inc ecx
    cmp ecx, 512
    jne 2b
    // PAE, OSFXSR.
    mov eax, 0x220
    mov cr4, eax
    mov eax, PML4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    // kvmclock.
    mov ecx, 0x4b564d01
    mov eax, CLOCK + 1
    xor edx, edx
    wrmsr
    mov eax, 0x80000013
    mov cr0, eax
    lgdt [GDT_POINTER]
    push 0x08
    push dword ptr [LONG_MODE]
    retf

.code64
long_mode:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    // A task state segment whose I/O permission bitmap, all zeros, permits every port below 0x1000.
    mov word ptr [TASK + 102], 104
    mov ax, 0x38
    ltr ax
    // To CPL3 with interrupts off: by SYSEXIT, which KVM's interpreter knows, as it does not know IRET.
    mov ecx, 0x174
    mov eax, 0x08
    xor edx, edx
    wrmsr
    lea rdx, [rip + user]
    mov rcx, STACK
    // SYSEXIT with REX.W.
    .byte 0x48, 0x0f, 0x35

user:
    mov rax, 0x0123456789abcdef
    movq xmm5, rax
    xor r12, r12
    mov qword ptr [COUNTER], r12
    // Fills memory: a multiplicative sequence.
    mov rdi, FILLED
    mov ecx, FILLED_WORDS
    mov rax, 0x9e3779b97f4a7c15
    mov rdx, 6364136223846793005
2:
    mov [rdi], rax
    imul rax, rdx
    add rax, 1
    add rdi, 8
    dec ecx
    jne 2b
    lea rsi, [rip + text_up]
    call print

poll:
    inc r12
    inc qword ptr [COUNTER]
    mov dx, 0x3fd
    in al, dx
    test al, 1
    je poll
    mov dx, 0x3f8
    in al, dx
    cmp al, 's'
    je state
    cmp al, 'c'
    je checksum
    cmp al, 't'
    je touch
    cmp al, 'x'
    je reset
    cmp al, 'q'
    je power_off
    jmp poll

state:
    lea rsi, [rip + text_state]
    call print
    mov rbx, [COUNTER]
    call hex
    mov rbx, r12
    call hex
    movq rbx, xmm5
    call hex
    // pvclock_vcpu_time_info: version, tsc_timestamp at 8, system_time at 16, mul at 24, shift at 28.
3:
    mov r8d, [CLOCK]
    test r8d, 1
    jne 3b
    rdtsc
    shl rdx, 32
    or rax, rdx
    sub rax, [CLOCK + 8]
    movsx ecx, byte ptr [CLOCK + 28]
    test ecx, ecx
    js 4f
    shl rax, cl
    jmp 5f
4:
    neg ecx
    shr rax, cl
5:
    mov edx, [CLOCK + 24]
    mul rdx
    shrd rax, rdx, 32
    add rax, [CLOCK + 16]
    cmp r8d, [CLOCK]
    jne 3b
    mov rbx, rax
    call hex
    call newline
    jmp poll

checksum:
    lea rsi, [rip + text_sum]
    call print
    mov rdi, FILLED
    mov ecx, FILLED_WORDS
    xor ebx, ebx
2:
    rol rbx, 7
    xor rbx, [rdi]
    add rdi, 8
    dec ecx
    jne 2b
    call hex
    call newline
    jmp poll

touch:
    mov rdi, TOUCHED
    mov ecx, 16384
2:
    inc byte ptr [rdi]
    add rdi, 4096
    dec ecx
    jne 2b
    lea rsi, [rip + text_touched]
    call print
    jmp poll

reset:
    mov dx, 0xcf9
    mov al, 6
    out dx, al
    jmp poll

power_off:
    mov dx, 0x604
    mov ax, 0x3400
    out dx, ax
    jmp poll

// Prints the string at RSI, which ends with a zero.
print:
    mov dx, 0x3f8
2:
    mov al, [rsi]
    test al, al
    je 3f
    out dx, al
    inc rsi
    jmp 2b
3:
    ret

newline:
    mov dx, 0x3f8
    mov al, 10
    out dx, al
    ret

// Prints a space and RBX in hexadecimal.
hex:
    mov dx, 0x3f8
    mov al, ' '
    out dx, al
    mov r9d, 16
2:
    rol rbx, 4
    mov eax, ebx
    and eax, 15
    cmp eax, 10
    jb 3f
    add eax, 39
3:
    add eax, 48
    out dx, al
    dec r9d
    jne 2b
    ret

text_up:
    .asciz "up\n"
text_state:
    .asciz "state"
text_sum:
    .asciz "sum"
text_touched:
    .asciz "touched\n"

.globl node_shim_test_guest_end
node_shim_test_guest_end:
