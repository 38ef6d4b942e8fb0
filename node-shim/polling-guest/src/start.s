// From the PVH entry point (32-bit protected mode without paging) to Rust in long mode at CPL3. KVM_PVM interprets what runs at CPL0, so
// that is kept to what only CPL0 can do: tables are in the file already.

.section .note.pvh, "a", @note
.balign 4
    .long 4, 4, 18              // XEN_ELFNOTE_PHYS32_ENTRY (Xen include/public/elfnote.h)
    .asciz "Xen"
    .long start

.section .data.tables, "aw"
.balign 4096
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
pdpt:
    .quad directories + 7, directories + 0x1007, directories + 0x2007, directories + 0x3007
    .fill 508, 8, 0
directories:
    // 4 GiB one to one in pages of 2 MiB: present, writable, for users.
    .set page, 0x87
    .rept 2048
    .quad page
    .set page, page + 0x200000
    .endr
task:
    // A task state segment whose IO permission bitmap, all zeros, permits every port below 0x1000.
    .fill 102, 1, 0
    .short 104
    .fill 0x1000 / 8, 1, 0
    .byte 0xff
.set TASK_LIMIT, 104 + 0x1000 / 8
.balign 8
gdt:
    // Null; code and data for CPL0; two that SYSEXIT skips; code and data for CPL3; task state segment.
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0
    .quad 0
    .quad 0x00affb000000ffff
    .quad 0x00cff3000000ffff
task_descriptor:
    .short TASK_LIMIT
    .short 0                    // bits 0-15 of the address, filled in below: a linker has no relocation for the parts
    .byte 0, 0x89, 0, 0
    .quad 0
gdt_pointer:
    .short gdt_pointer - gdt - 1
    .long gdt
long_mode_pointer:
    .long long_mode
    .short 8

.section .bss.stack, "aw", @nobits
.balign 16
    .skip 0x10000
stack:

.section .text.start, "ax"
.code32
.globl start
start:
    // The sign of life that the start of a VM is measured by: COM1, before anything else.
    mov dx, 0x3f8
    mov al, '!'
    out dx, al
    mov esp, offset stack
    mov eax, offset task
    mov [task_descriptor + 2], ax
    shr eax, 16
    mov [task_descriptor + 4], al
    // PAE, OSFXSR, OSXMMEXCPT.
    mov eax, 0x620
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
    mov ecx, 0xc0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, 0x80000013
    mov cr0, eax
    lgdt [gdt_pointer]
    ljmp [long_mode_pointer]

.code64
long_mode:
    mov ax, 0x10
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov ax, 0x38
    ltr ax
    // To CPL3 with interrupts off: by SYSEXIT, which KVM's interpreter knows, as it does not know IRET.
    mov ecx, 0x174
    mov eax, 0x08
    xor edx, edx
    wrmsr
    mov edx, offset user
    mov ecx, offset stack
    // SYSEXIT with REX.W.
    .byte 0x48, 0x0f, 0x35

user:
    xor ebp, ebp
    call polling_guest
