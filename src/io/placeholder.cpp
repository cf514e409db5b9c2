namespace megalodon {}
