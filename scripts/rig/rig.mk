# Verbs on a real RDMA device. RIG=host|uml|qemu|auto says where; see scripts/rig/rig.

# Verbs are compiled in where the headers of libibverbs are; the library itself is opened at run time.
RDMA := $(shell pkg-config --exists libibverbs 2>/dev/null && echo rdma)

.PHONY: rig test-rdma rig-shell

rig: ## get what the RDMA rig needs: a kernel with soft-RoCE, outside the tree
	scripts/rig/rig prepare

test-rdma: ## the tests of verbs on a real RDMA device, soft-RoCE in a guest if there is none
	@scripts/rig/deps.sh
	scripts/rig/test.sh $(RDMA_PKG)

rig-shell: ## a shell where there is a soft-RoCE device
	scripts/rig/rig shell
