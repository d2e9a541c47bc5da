def run(report, where, chosen):
    pass
